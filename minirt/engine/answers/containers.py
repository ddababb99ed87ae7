"""What is said of containers, of what runs in them and of what they use. See the package's own words.

Source: Engine API 1.44 reference, "Container" and "Exec". Taught in chapter 08.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

# The caller's own words, with docker's keys and defaults around them: request.py lists what may be in them.
ContainerConfig = dict[str, Any]
HostConfig = dict[str, Any]


class Port(TypedDict):
    PrivatePort: int
    Type: str
    IP: NotRequired[str]
    PublicPort: NotRequired[int]


class MountPoint(TypedDict):
    Type: str
    Source: str
    Destination: str
    Mode: str
    RW: bool
    Propagation: str
    Name: NotRequired[str]  # of a volume, as its driver
    Driver: NotRequired[str]


class EndpointSettings(TypedDict):
    """A container in a network."""

    IPAMConfig: None
    Links: None
    Aliases: None
    NetworkID: str
    EndpointID: str
    Gateway: str
    IPAddress: str
    IPPrefixLen: int
    IPv6Gateway: str
    GlobalIPv6Address: str
    GlobalIPv6PrefixLen: int
    MacAddress: str
    DriverOpts: None


class SummaryHostConfig(TypedDict):
    NetworkMode: str


class SummaryNetworkSettings(TypedDict):
    Networks: dict[str, EndpointSettings]


class ContainerSummary(TypedDict):
    Id: str
    Names: list[str]
    Image: str
    ImageID: str
    Command: str
    Created: int
    Ports: list[Port]
    Labels: dict[str, str]
    State: str
    Status: str
    HostConfig: SummaryHostConfig
    NetworkSettings: SummaryNetworkSettings
    Mounts: list[MountPoint]
    SizeRw: NotRequired[int]  # where they were asked for
    SizeRootFs: NotRequired[int]


class ContainerState(TypedDict):
    Status: str
    Running: bool
    Paused: bool
    Restarting: bool
    OOMKilled: bool
    Dead: bool
    Pid: int
    ExitCode: int
    Error: str
    StartedAt: str
    FinishedAt: str


class PortBinding(TypedDict):
    HostIp: str
    HostPort: str


class NetworkSettings(TypedDict):
    Bridge: str
    SandboxID: str
    HairpinMode: bool
    LinkLocalIPv6Address: str
    LinkLocalIPv6PrefixLen: int
    Ports: dict[str, list[PortBinding] | None]
    SandboxKey: str
    SecondaryIPAddresses: None
    SecondaryIPv6Addresses: None
    EndpointID: str
    Gateway: str
    GlobalIPv6Address: str
    IPAddress: str
    IPv6Gateway: str
    MacAddress: str
    GlobalIPv6PrefixLen: int
    IPPrefixLen: int
    Networks: dict[str, EndpointSettings]


class DriverData(TypedDict):
    """Where the layers are."""

    LowerDir: str
    UpperDir: str
    MergedDir: NotRequired[str]  # of a container
    WorkDir: NotRequired[str]


class GraphDriver(TypedDict):
    Name: str
    Data: DriverData


class ContainerInspectResponse(TypedDict):
    Id: str
    Created: str
    Path: str
    Args: list[str]
    State: ContainerState
    Image: str
    ResolvConfPath: str
    HostnamePath: str
    HostsPath: str
    LogPath: str
    Name: str
    RestartCount: int
    Driver: str
    Platform: str
    MountLabel: str
    ProcessLabel: str
    AppArmorProfile: str
    ExecIDs: list[str] | None
    HostConfig: HostConfig
    GraphDriver: GraphDriver
    Mounts: list[MountPoint]
    Config: ContainerConfig
    NetworkSettings: NetworkSettings
    BundlePath: str  # ours: chapter 08 looks into it
    SizeRw: NotRequired[int]
    SizeRootFs: NotRequired[int]


class ContainerCreateResponse(TypedDict):
    Id: str
    Warnings: list[str]


class ContainerUpdateResponse(TypedDict):
    Warnings: list[str]


class ContainerWaitExitError(TypedDict):
    Message: str


class ContainerWaitResponse(TypedDict):
    StatusCode: int
    Error: NotRequired[ContainerWaitExitError]


class ContainerTopResponse(TypedDict):
    Titles: list[str]
    Processes: list[list[str]]


class ContainerPruneResponse(TypedDict):
    ContainersDeleted: list[str]
    SpaceReclaimed: int


class FilesystemChange(TypedDict):
    Path: str
    Kind: int  # 0 changed, 1 added, 2 deleted


class ContainerPathStat(TypedDict):
    """In the header X-Docker-Container-Path-Stat."""

    name: str
    size: int
    mode: int  # as Go's fs.FileMode
    mtime: str
    linkTarget: str


class ProcessConfig(TypedDict):
    tty: bool
    entrypoint: str
    arguments: list[str]
    privileged: bool
    user: str


class ExecInspectResponse(TypedDict):
    ID: str
    Running: bool
    ExitCode: int | None
    ProcessConfig: ProcessConfig
    OpenStdin: bool
    OpenStdout: bool
    OpenStderr: bool
    CanRemove: bool
    ContainerID: str
    DetachKeys: str
    Pid: int


# what it uses


class CPUUsage(TypedDict):
    total_usage: int  # nanoseconds, as those below
    usage_in_kernelmode: int
    usage_in_usermode: int


class ThrottlingData(TypedDict):
    periods: int
    throttled_periods: int
    throttled_time: int


class CPUStats(TypedDict):
    cpu_usage: CPUUsage
    throttling_data: ThrottlingData
    system_cpu_usage: NotRequired[int]  # of one that runs, as online_cpus
    online_cpus: NotRequired[int | None]


class MemoryStats(TypedDict, total=False):
    """Empty for one that does not run, as PidsStats."""

    usage: int
    stats: dict[str, int]
    limit: int
    max_usage: int  # where the kernel keeps it


class PidsStats(TypedDict, total=False):
    current: int
    limit: int | None


class BlkioStatEntry(TypedDict):
    major: int
    minor: int
    op: str
    value: int


class BlkioStats(TypedDict):
    io_service_bytes_recursive: list[BlkioStatEntry] | None


class NetworkStats(TypedDict):
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class Figures(TypedDict):
    """One look."""

    num_procs: NotRequired[int]  # of one that runs, as storage_stats
    storage_stats: NotRequired[dict[str, int]]
    cpu_stats: CPUStats
    memory_stats: MemoryStats
    pids_stats: PidsStats
    blkio_stats: BlkioStats
    networks: NotRequired[dict[str, NetworkStats]]


class ContainerStats(Figures):
    name: str
    id: str
    preread: str
    read: str
    precpu_stats: CPUStats
