"""The nouns all rooms share: reference, digest, descriptor, manifest, index, config, platform.

Pure values: parsing and validation only, no files, no network. Taught in chapter 05.
"""
