//! The operating system behind safe functions: allocator, cgroup limits, inherited sockets, notification.
