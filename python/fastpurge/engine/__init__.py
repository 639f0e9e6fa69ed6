"""The flow of a sweep: keep, closure, scan, guards, plan, release."""
