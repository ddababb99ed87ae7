"""What the daemon answers, every shape in one place, called as the Engine API calls it; request.py has what is asked.

    containers.py   containers, execs, figures
    images.py       images, and the lines of a pull
    system.py       volumes, networks, events, the whole

Types only: whoever makes an answer is held to its shape by mypy, and the daemon sends nothing else (`Answer`). No
module loads these when it runs, so no start is slower by them. A field is always there unless it is `NotRequired` or of
a type that is not `total`; one that is `X | None` is there and may be null. Times are RFC 3339 texts or seconds of the
epoch, sizes are bytes. On the wire fields are in the order in which they were put together.
Source: Engine API 1.44 reference. Taught in chapter 04.
"""

from __future__ import annotations

from minirt.engine.answers import containers, images, system
from minirt.runtime import doctor

Answer = (
    containers.ContainerSummary
    | containers.ContainerInspectResponse
    | containers.ContainerCreateResponse
    | containers.ContainerUpdateResponse
    | containers.ContainerWaitResponse
    | containers.ContainerTopResponse
    | containers.ContainerPruneResponse
    | containers.FilesystemChange
    | containers.ContainerPathStat
    | containers.ExecInspectResponse
    | containers.ContainerStats
    | images.ImageSummary
    | images.ImageInspect
    | images.HistoryResponseItem
    | images.ImageDeleteResponseItem
    | images.ImagePruneResponse
    | images.BuildPruneResponse
    | images.CreateImageInfo
    | images.PushImageInfo
    | images.DistributionInspect
    | images.RemoteManifest
    | system.AuthenticateOKResponse
    | system.ErrorResponse
    | system.IDResponse
    | system.Volume
    | system.VolumeListResponse
    | system.VolumePruneResponse
    | system.Network
    | system.NetworkPruneResponse
    | system.EventMessage
    | system.SystemVersion
    | system.SystemInfo
    | system.SystemDataUsageResponse
    | system.Problem
    | system.PruneResponse
    | system.ShareResponse
    | system.TraceEvent
    | doctor.Row
)
