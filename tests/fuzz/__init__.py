"""Fuzzing: every parser that reads what an image, a registry or another program wrote.

    targets   one function a parser: bytes in; nothing but the package's own errors may come out
    corpus    where each begins: small honest inputs, made by code, and what earlier runs found
    run       the coverage-guided fuzzer over one target (needs the `fuzz` extra); docs/hostile.md has the command

tests/test_fuzz.py replays the corpus, and mutates it by chance, without the fuzzer.
"""
