"""The embedded registry: sample images made on this machine, served as any registry serves.

So that the course works with no network and no Docker. The wall is the OCI distribution-spec: `docker pull`, `podman
pull` and `skopeo copy` use it as they use Docker Hub. What it offers stands in `names`; how each image is made in
`hello`, `toolbox` and `greeter`; `layout` keeps what was made; `server` speaks. Taught in chapters 01, 04 and 05.
"""
