"""What the embedded registry offers, by repository; imports nothing, so asking costs nothing."""

REPOSITORIES: dict[str, tuple[str, ...]] = {
    "library/greeter": ("1.0", "2.0"),
    "library/hello-world": ("latest",),
    "library/toolbox": ("latest",),
}
