"""From a bundle to a running process: what the word container means.

    spec          options → config.json (OCI runtime-spec)              written once, at create
    container     start, status, wait, signal, by the folder            what the engine calls
    shim          one process per container; drives init; pump, log     stays as long as the container
    rootfs        mounts the layers; user looks USER up in them
    init          pid 1: mounts, devices, capabilities, then the command
    state         files and processes that cannot be mistaken; doctor: what this machine can do

Taught in chapters 07 and 08.
"""
