"""The course's own tests, tested: every mechanism module is changed in one small place, and a test must fail."""
