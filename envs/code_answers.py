"""The answers of code tasks, by other ways than those of the programs that the oracle runs."""

import bisect
import heapq
import math
from collections import Counter
from collections.abc import Sequence


def power_remainder(base: int, exponent: int, modulus: int) -> int:
    """`base ** exponent % modulus`, by squaring from the highest bit on."""
    result = 1
    for bit in f"{exponent:b}":
        result = result * result * (base if bit == "1" else 1) % modulus
    return result


def affine_power(a: int, c: int, n: int, m: int) -> tuple[int, int]:
    """The map x -> a x + c applied n times, as a factor and an offset, modulo m."""
    factor, offset = 1, 0
    for bit in f"{n:b}":
        factor, offset = factor * factor % m, (factor * offset + offset) % m
        if bit == "1":
            factor, offset = factor * a % m, (a * offset + c) % m
    return factor, offset


def prime_sum(low: int, high: int) -> int:
    """The sum of the primes from `low` to `high`, by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * (high + 1)
    sieve[:2] = b"\0\0"
    for n in range(2, math.isqrt(high) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, high + 1, n)))
    return sum(n for n in range(low, high + 1) if sieve[n])


def shortest_path(roads: Sequence[tuple[str, str, int]], start: str, end: str) -> int:
    """The length of the shortest way on two-way roads (from, to, length), by Dijkstra's algorithm."""
    queue, done = [(0, start)], set()
    while queue:
        distance, node = heapq.heappop(queue)
        if node == end:
            return distance
        if node not in done:
            done.add(node)
            for a, b, length in roads:
                if node in (a, b):
                    heapq.heappush(queue, (distance + length, b if node == a else a))
    raise AssertionError(f"no way from {start} to {end}")


def largest_island(rows: Sequence[str]) -> int:
    """The size of the largest set of # connected along rows and columns, by union-find."""
    parent: dict[tuple[int, int], tuple[int, int]] = {}

    def root(square: tuple[int, int]) -> tuple[int, int]:
        while parent[square] != square:
            square = parent[square]
        return square

    for y, row in enumerate(rows):
        for x, mark in enumerate(row):
            if mark == "#":
                parent[y, x] = (y, x)
                for neighbor in ((y - 1, x), (y, x - 1)):
                    if neighbor in parent:
                        parent[root(neighbor)] = root((y, x))
    return max(Counter(root(square) for square in parent).values(), default=0)


def longest_rise(numbers: Sequence[int]) -> int:
    """The length of the longest strictly rising subsequence, by patience sorting."""
    tops: list[int] = []  # the smallest last element of a rising subsequence of every length
    for number in numbers:
        place = bisect.bisect_left(tops, number)
        tops[place : place + 1] = [number]
    return len(tops)
