"""What the back ends ask of the Linux kernel: control groups, system-call filters, user ids, handles of processes."""
