"""The local cache: verified content, names, and layers unpacked once and shared by every image and container.

    oci/          an OCI image layout: what was downloaded, byte for byte, and what it is called   layout, names
    ingest/       downloads that are not complete yet                                               worker
    layers/       unpacked layers in overlay form, by DiffID: complete or absent                    layers, applier, tar
    containers/   each container's writable part over shared layers                                 snapshots
    version       the number of this format: older ones are brought up to it                        format

Life of a layer: a stream of bytes is fed to a *worker* process, which in one pass writes the ingest file and its
digest, inflates, digests again (the DiffID), and applies the tar to a hidden folder. Only when both digests match are
the blob and the folder renamed to their names. Source: OCI image-spec, image-layout.md and layer.md. Taught in
chapters 04-06.
"""
