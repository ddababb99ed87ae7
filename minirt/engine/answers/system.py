"""What is said of the whole, of volumes and networks, and of what happens. See the package's own words.

Source: Engine API 1.44 reference, "System", "Volume" and "Network". Taught in chapters 04 and 09.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from minirt.engine.answers.containers import ContainerSummary
from minirt.engine.answers.images import ImageDeleteResponseItem, ImageSummary


class ErrorResponse(TypedDict):
    message: str


class IDResponse(TypedDict):
    """Of a commit, and of a new exec."""

    Id: str


# volumes


class VolumeUsageData(TypedDict):
    Size: int
    RefCount: int


class Volume(TypedDict):
    CreatedAt: str
    Driver: str
    Labels: dict[str, str] | None
    Name: str
    Options: dict[str, str] | None
    Scope: str
    Mountpoint: str
    UsageData: NotRequired[VolumeUsageData]  # in GET /system/df


class VolumeListResponse(TypedDict):
    Volumes: list[Volume]
    Warnings: None


class VolumePruneResponse(TypedDict):
    VolumesDeleted: list[str]
    SpaceReclaimed: int


# networks


class IPAMConfig(TypedDict):
    Subnet: str
    Gateway: str


class IPAM(TypedDict):
    Driver: str
    Options: None
    Config: list[IPAMConfig]


class ConfigReference(TypedDict):
    Network: str


class NetworkContainer(TypedDict):
    Name: str
    EndpointID: str
    MacAddress: str
    IPv4Address: str
    IPv6Address: str


class Network(TypedDict):
    Name: str
    Id: str
    Created: str
    Scope: str
    Driver: str
    EnableIPv6: bool
    IPAM: IPAM
    Internal: bool
    Attachable: bool
    Ingress: bool
    ConfigFrom: ConfigReference
    ConfigOnly: bool
    Containers: dict[str, NetworkContainer]
    Options: dict[str, str]
    Labels: dict[str, str]


class NetworkPruneResponse(TypedDict):
    NetworksDeleted: None


# what happens

# The fields of API 1.21 and older, of containers and images only. `from` is a word of Python's.
OldEvent = TypedDict("OldEvent", {"status": str, "id": str, "from": str}, total=False)


class EventActor(TypedDict):
    ID: str
    Attributes: dict[str, str]


class EventMessage(OldEvent):
    Type: str
    Action: str
    Actor: EventActor
    scope: str
    time: int
    timeNano: int


# the whole


class VersionPlatform(TypedDict):
    Name: str


class ComponentVersion(TypedDict):
    Name: str
    Version: str
    Details: dict[str, str]


class SystemVersion(TypedDict):
    Platform: VersionPlatform
    Components: list[ComponentVersion]
    Version: str
    ApiVersion: str
    MinAPIVersion: str
    Os: str
    Arch: str
    KernelVersion: str
    GitCommit: str
    GoVersion: str
    BuildTime: str
    PythonVersion: str  # ours


class PluginsInfo(TypedDict):
    Volume: list[str]
    Network: list[str]
    Authorization: None
    Log: list[str]


class IndexInfo(TypedDict):
    Name: str
    Mirrors: list[str]
    Secure: bool
    Official: bool


class RegistryServiceConfig(TypedDict):
    AllowNondistributableArtifactsCIDRs: list[str]
    AllowNondistributableArtifactsHostnames: list[str]
    InsecureRegistryCIDRs: list[str]
    IndexConfigs: dict[str, IndexInfo]
    Mirrors: list[str]


class Runtime(TypedDict):
    path: str


class SwarmInfo(TypedDict):
    NodeID: str
    NodeAddr: str
    LocalNodeState: str
    ControlAvailable: bool
    Error: str
    RemoteManagers: None


class Commit(TypedDict):
    ID: str
    Expected: str


class SystemInfo(TypedDict):
    ID: str
    Containers: int
    ContainersRunning: int
    ContainersPaused: int
    ContainersStopped: int
    Images: int
    Driver: str
    DriverStatus: list[list[str]]
    Plugins: PluginsInfo
    MemoryLimit: bool
    SwapLimit: bool
    CpuCfsPeriod: bool
    CpuCfsQuota: bool
    CPUShares: bool
    CPUSet: bool
    PidsLimit: bool
    KernelMemory: bool
    KernelMemoryTCP: bool
    IPv4Forwarding: bool
    BridgeNfIptables: bool
    BridgeNfIp6tables: bool
    Debug: bool
    NFd: int
    OomKillDisable: bool
    NGoroutines: int
    SystemTime: str
    LoggingDriver: str
    CgroupDriver: str
    CgroupVersion: str
    NEventsListener: int
    KernelVersion: str
    OperatingSystem: str
    OSVersion: str
    OSType: str
    Architecture: str
    IndexServerAddress: str
    RegistryConfig: RegistryServiceConfig
    NCPU: int
    MemTotal: int
    GenericResources: None
    DockerRootDir: str
    HttpProxy: str
    HttpsProxy: str
    NoProxy: str
    Name: str
    Labels: list[str]
    ExperimentalBuild: bool
    ServerVersion: str
    Runtimes: dict[str, Runtime]
    DefaultRuntime: str
    Swarm: SwarmInfo
    LiveRestoreEnabled: bool
    Isolation: str
    InitBinary: str
    ContainerdCommit: Commit
    RuncCommit: Commit
    InitCommit: Commit
    SecurityOptions: list[str]
    Warnings: list[str] | None


class AdditionalStore(TypedDict):
    """A store that is only read; its bytes of disk, and how many of its images have a container here."""

    Path: str
    Images: int
    Active: int
    Size: int


class SystemDataUsageResponse(TypedDict):
    LayersSize: int
    Images: list[ImageSummary]
    Containers: list[ContainerSummary]
    Volumes: list[Volume]
    BuildCache: list[Any]  # there is none
    BuilderSize: int
    Unfinished: int  # ours: bytes of downloads that can be resumed
    AdditionalStores: list[AdditionalStore]  # ours


class AuthenticateOKResponse(TypedDict):
    IdentityToken: str
    Status: str


# ours: the paths under /minirt


class ShareResponse(TypedDict):
    """How much others find in the store."""

    Images: int
    Layers: int


class Problem(TypedDict):
    what: str
    problem: str


class PruneResponse(TypedDict):
    """Of all at once."""

    ContainersDeleted: list[str]
    ImagesDeleted: list[ImageDeleteResponseItem]
    SpaceReclaimed: int


class TraceEvent(TypedDict):
    """See minirt.trace."""

    at: float
    box: str
    action: str
    detail: dict[str, Any]
