"""What is said of images, and line by line while they come. See the package's own words.

Source: Engine API 1.44 reference, "Image". Taught in chapter 05.
"""

from __future__ import annotations

from typing import Any, TypedDict

from minirt.engine.answers.containers import ContainerConfig, GraphDriver

Descriptor = dict[str, Any]  # the OCI image-spec's, as minirt.image.descriptor writes it


class ImageSummary(TypedDict):
    Id: str
    ParentId: str
    RepoTags: list[str]
    RepoDigests: list[str]
    Created: int
    Size: int
    VirtualSize: int
    SharedSize: int  # -1: not reckoned, as Containers
    Containers: int
    Labels: dict[str, str] | None


class RootFS(TypedDict):
    Type: str
    Layers: list[str]


class ImageMetadata(TypedDict):
    LastTagTime: str


class Variant(TypedDict, total=False):
    """Of the architecture, where it has some."""

    Variant: str


class ImageInspect(Variant):
    Id: str
    RepoTags: list[str]
    RepoDigests: list[str]
    Parent: str
    Comment: str
    Created: str
    Container: str
    ContainerConfig: ContainerConfig
    DockerVersion: str
    Author: str
    Config: ContainerConfig
    Architecture: str
    Os: str
    Size: int
    VirtualSize: int
    GraphDriver: GraphDriver
    RootFS: RootFS
    Metadata: ImageMetadata
    Descriptor: Descriptor  # ours, as the three below: chapter 05 looks into them
    Manifest: str
    Blobs: list[Descriptor]
    Store: str  # the root folder it lies in: ours, or an additional store's


class HistoryResponseItem(TypedDict):
    Id: str
    Created: int
    CreatedBy: str
    Tags: list[str] | None
    Size: int
    Comment: str


class ImageDeleteResponseItem(TypedDict, total=False):
    """One of the two."""

    Untagged: str
    Deleted: str


class ImagePruneResponse(TypedDict):
    ImagesDeleted: list[ImageDeleteResponseItem]
    SpaceReclaimed: int


class BuildPruneResponse(TypedDict):
    CachesDeleted: None
    SpaceReclaimed: int


class ProgressDetail(TypedDict, total=False):
    current: int
    total: int


class ErrorDetail(TypedDict):
    message: str


class PushResult(TypedDict):
    Tag: str
    Digest: str
    Size: int


class PushImageInfo(TypedDict, total=False):
    """A line of a push; the last of a tag has `aux`."""

    status: str
    progressDetail: ProgressDetail
    id: str
    aux: PushResult
    errorDetail: ErrorDetail
    error: str


class CreateImageInfo(TypedDict, total=False):
    """A line of a pull, an import or a load."""

    status: str
    progressDetail: ProgressDetail
    id: str
    stream: str
    errorDetail: ErrorDetail
    error: str


class DistributionInspect(TypedDict):
    """What a registry has."""

    Descriptor: dict[str, Any]
    Platforms: list[dict[str, Any]]


class RemoteManifest(TypedDict):
    """Ours: a document of a registry's. `Raw` is base64."""

    Ref: str
    Descriptor: dict[str, Any]
    Raw: str
