"""A small MCP server by the book, without the package: it starts in no time, writes down what it gets, misbehaves.

Usage: bare.py LOG [ignore-eof] [junk] [mute] [exit STATUS]
"""

import json
import os
import signal
import sys

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NOTHING = {"type": "object", "properties": {}}
TOOLS = {
    "echo": TEXT,
    "remember": TEXT,
    "hang": NOTHING,
    "die": NOTHING,
    "freeze": NOTHING,
    "pid": NOTHING,
    "wrong": NOTHING,
    "files.read": NOTHING,
}
memory: list[str] = []


def log(text: str) -> None:
    with open(sys.argv[1], "a") as file:
        file.write(text + "\n")


def send(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def called(name: str, arguments: dict) -> str | None:
    if name == "die":
        print("dying", file=sys.stderr, flush=True)
        os._exit(9)
    if name == "freeze":
        signal.pause()
    if name == "remember":
        memory.append(arguments["text"])
        return ",".join(memory)
    return {"echo": arguments.get("text"), "pid": str(os.getpid()), "files.read": "content"}.get(name)


def answer(message: dict) -> None:
    method, params = message["method"], message.get("params", {})
    log(json.dumps({"method": method, "id": message.get("id"), "params": params}))
    if "id" not in message:
        return
    if method == "initialize":
        about = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}}
        result: dict = {**about, "serverInfo": {"name": "bare", "version": "1"}}
    elif method == "ping":
        result = {}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": schema} for name, schema in TOOLS.items()]}
    elif method == "tools/call" and params["name"] == "wrong":
        result = {"content": "not a list"}
    elif method == "tools/call" and params["name"] in TOOLS:
        text = called(params["name"], params.get("arguments", {}))
        if text is None:
            return
        result = {"content": [{"type": "text", "text": text}]}
    else:
        send({"id": message["id"], "error": {"code": -32601, "message": f"no {method}"}})
        return
    send({"id": message["id"], "result": result})


def main(flags: list[str]) -> None:
    log(f"started {os.getpid()}")
    if "exit" in flags:
        print("Traceback: no database\nset DATABASE_URL", file=sys.stderr, flush=True)
        sys.exit(int(flags[-1]))
    if "ignore-eof" in flags:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "junk" in flags:
        print("Welcome to the server!\n{not json", flush=True)
    if "mute" in flags:
        signal.pause()
    for line in sys.stdin:
        answer(json.loads(line))
    log("end of input")
    while "ignore-eof" in flags:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[2:])
