"""Each clause of what must hold against a hostile image or registry, and the tests that hold it: docs/hostile.md.

`python tests/hostile.py` writes the page anew, with the number of cases that pytest collects for each clause.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import attacks
from fuzz.targets import TARGETS

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "hostile.md"
_A, _T, _R, _H, _S = "test_applier", "test_tar", "test_registry", "test_registry_hostile", "test_store"
_ESCAPES = f"{_A}::test_an_escape_is_refused_and_leaves_nothing"
_STAYS = f"{_A}::test_what_is_not_refused_stays_in_its_folder"
_PLAIN = f"{_A}::test_the_form_of_plain_whiteouts_holds_the_same"
_BOMB = f"{_A}::test_a_bomb_is_unpacked_or_refused_in_bounded_memory"
_LIMITS = f"{_A}::test_limits_are_the_users_and_say_how_to_raise_them"
_FUZZ = "test_fuzz::test_what_chance_makes_of_it_breaks_nothing"

# A test's name may end in `[words]`: of its cases those with one of the words, divided by `|`, in their names.
UNPACKING: list[tuple[str, list[str]]] = [
    (
        "`../`, absolute and `/..` names, empty ones, of over PATH_MAX, with NUL; bytes that are no UTF-8 are kept",
        [f"{_ESCAPES}[dotdot|empty|long|nul]", f"{_STAYS}[absolute|root-dotdot|dots-and-slashes]",
         f"{_A}::test_names_are_bytes", f"{_A}::test_names_are_cleaned_lexically",
         f"{_A}::test_names_that_leave_are_refused", f"{_A}::test_absolute_and_dotted_names_stay_inside"],
    ),
    (
        "a symbolic link, then a write through it: relative, absolute, chained, up and out, to a sibling layer, /proc",
        [f"{_ESCAPES}[link]", f"{_A}::test_without_openat2_the_walk_holds_the_same"],
    ),
    (
        "a hard link to outside, through a link, to a lower layer; to a symbolic link, then mode, owner and time",
        [f"{_ESCAPES}[hardlink]", f"{_STAYS}[hardlink]", f"{_A}::test_a_hardlink_to_a_symlink_links_the_symlink"],
    ),
    ("a folder that masks a link of a lower layer masks it", [f"{_A}::test_a_folder_masks_the_link_of_a_lower_layer"]),
    (
        "an entry in place of one of another kind; the parent of an open folder replaced, by the archive or by a race",
        [f"{_A}::test_later_entries_replace_earlier_ones_of_any_kind", f"{_ESCAPES}[open-folder|parent-is|root-]",
         f"{_STAYS}[over]", f"{_A}::test_a_parent_that_another_process_swaps_leads_nowhere"],
    ),
    (
        "whiteouts: `.wh.`, `.wh..`, `.wh...`, opaque at the root and through a link, in a whiteout; made anew",
        [f"{_ESCAPES}[whiteout|opaque]", f"{_STAYS}[whiteout|opaque]",
         f"{_A}::test_whiteouts_take_overlay_form_and_hide_lower_layers_only",
         f"{_A}::test_a_root_level_opaque_marks_the_layer_itself",
         "test_rootless::test_plain_whiteouts_mean_what_the_kernels_do"],
    ),
    (
        "a whiteout touches no other layer, image or container",
        [f"{_A}::test_a_whiteout_touches_no_other_layer_image_or_container"],
    ),
    (
        "devices: only root's, never overlay's own mark, no number out of range; else left out, and told",
        [f"{_A}::test_devices_are_made_by_root_and_left_out_by_others", f"{_ESCAPES}[device]"],
    ),
    (
        "set-id bits, file capabilities and xattrs are kept; overlay's own are never taken from an image",
        [f"{_A}::test_every_kind_of_entry", f"{_A}::test_xattrs_are_kept_or_left_out_by_policy"],
    ),
    (
        "bombs: ratio, sparse headers, entries, nesting, records: bounded memory and time, and a limit that is named",
        [_BOMB, _LIMITS, f"{_A}::test_limits_stop_bombs", f"{_A}::test_deep_nesting_is_bounded",
         f"{_T}::test_a_bomb_is_stopped_in_bounded_memory", f"{_T}::test_a_ratio_no_honest_layer_has_is_refused",
         f"{_ESCAPES}[sparse|record|deep]", f"{_A}::test_removal_has_no_limit_of_depth"],
    ),
    (
        "gzip that is truncated, of several members, with a trail; a wrong DiffID; duplicates; GNU, PAX, base-256",
        [f"{_T}::test_damaged_compression_is_refused", f"{_T}::test_members_and_frames_are_joined",
         f"{_T}::test_gzip_may_end_in_zero_padding", f"{_T}::test_malformed_archives_are_refused",
         f"{_T}::test_reads_what_gnu_tar_writes", f"{_T}::test_base_256_and_fractions_and_prefix",
         f"{_A}::test_a_layer_of_other_content_than_its_diff_id_is_refused", f"{_STAYS}[duplicates|time]",
         f"{_ESCAPES}[owner|size|time|negative]", f"{_S}::test_a_layer_that_is_no_layer_is_refused"],
    ),
    (
        "the same without the kernel's overlay, whose layers keep `.wh.` files: the whole list again",
        [_PLAIN],
    ),
]  # fmt: skip
PULLING: list[tuple[str, list[str]]] = [
    (
        "a digest that does not match, for manifest, config and blob; bodies too short, too long, with a trail",
        [f"{_R}::test_a_manifest_is_what_its_digest_says", f"{_H}::test_a_config_that_is_another_is_refused",
         f"{_S}::test_wrong_bytes_leave_nothing", f"{_R}::test_bodies_of_another_length",
         f"{_H}::test_other_content_behind_the_same_digest_is_fetched_anew_and_refused"],
    ),
    (
        "`sha256:../..`, unknown algorithms, a `Docker-Content-Digest` that lies",
        [f"{_R}::test_manifests_that_lie", "test_image::test_a_digest_is_well_formed_or_refused"],
    ),
    (
        "a document of two kinds, of another type than announced (CVE-2021-41190), of schema 1; an index in an index",
        ["test_image::test_a_document_that_is_not_what_it_says_is_refused",
         f"{_H}::test_indexes_do_not_nest_and_say_what_they_hold"],
    ),
    (
        "manifest and config 4 MiB, token 1 MiB; a body longer than its descriptor ends; nothing is inflated",
        [f"{_R}::test_manifests_that_lie", f"{_R}::test_a_token_that_is_none", f"{_R}::test_bodies_of_another_length",
         f"{_H}::test_a_document_that_comes_compressed_is_not_inflated",
         f"{_H}::test_what_comes_over_the_wire[without end]"],
    ),
    (
        "credentials stay with their registry: other hosts, http, a storage's challenge, .netrc, proxies, cookies",
        [f"{_R}::test_credentials_stay_at_home", f"{_R}::test_basic_authorization",
         f"{_R}::test_docker_hubs_login_is_not_for_mirrors_nor_for_the_embedded_hub",
         f"{_R}::test_https_never_becomes_http", f"{_R}::test_a_proxy_of_the_environment",
         f"{_R}::test_a_first_answer_that_is_refused", f"{_H}::test_a_proxys_password_stays_with_that_proxy",
         f"{_H}::test_credentials_are_not_for_a_redirect_of_the_first_answer"],
    ),
    ("foreign-layer URLs are not fetched (CVE-2020-15157)", [f"{_H}::test_a_foreign_layers_url_is_not_fetched"]),
    (
        "redirects and realms do not lead to link-local or loopback addresses, but where the registry is",
        [f"{_R}::test_redirects_that_are_refused", f"{_R}::test_a_realm_on_loopback_is_only_for_registries_there",
         "test_registry_parsers::test_which_addresses_are_near"],
    ),
    (
        "401 without end, 429 and Retry-After, 5xx, reset, stall, drip: bounded tries, resumed, one clear error",
        [f"{_R}::test_401_for_ever_ends", f"{_R}::test_rate_limits", f"{_R}::test_patience_ends",
         f"{_R}::test_a_blob_goes_on_where_it_broke", f"{_H}::test_what_comes_over_the_wire",
         f"{_H}::test_retry_after_in_both_forms", f"{_H}::test_a_date_to_wait_for_is_waited_for_and_told",
         f"{_H}::test_pauses_grow_and_differ",
         f"{_H}::test_a_link_that_drops_every_two_megabytes_costs_each_byte_once",
         f"{_H}::test_a_resumed_blob_is_whole_whatever_the_server_thinks_of_ranges",
         f"{_H}::test_a_mirror_that_fails_in_the_middle_is_left_and_no_byte_is_fetched_twice",
         f"{_H}::test_a_mirror_that_lies_is_left_for_docker_hub", f"{_H}::test_the_user_sees_what_is_waited_for"],
    ),
    (
        "plain http only to loopback or to a registry that is listed",
        [f"{_R}::test_a_first_answer_that_is_refused", f"{_R}::test_redirects_that_are_refused",
         f"{_H}::test_plain_http_is_for_loopback_and_for_whom_the_user_lists",
         "test_registry_parsers::test_settings_that_make_no_sense_are_refused"],
    ),
    ("any bytes, to any parser", [_FUZZ, "test_fuzz::test_the_corpus_breaks_nothing"]),
]  # fmt: skip

_HEAD = """# What holds against hostile images and registries

Each clause, and the tests that hold it. The page is written by `python tests/hostile.py`; the numbers are the cases
that pytest collects. test_applier, test_store and test_registry_hostile run as root, as a plain user with subordinate
ids and as one without (tests/test_plain_user.py).

Layers made to get out (tests/attacks.py): {tried} tried, {refused} refused, {contained} contained, 0 escaped; the
same in the form without the kernel's whiteouts.
"""
_FUZZING = """
## Fuzzing
Every parser of what an image, a registry or another program wrote has a target in tests/fuzz: {targets}.
The corpus is replayed and changed by chance in every run of the tests. For long runs, guided by coverage
(atheris, with libFuzzer's options), with new inputs kept in a folder:

    .venv/bin/pip install -q -e '.[test,fuzz]'
    .venv/bin/python tests/fuzz/run.py header /tmp/corpus-header -max_total_time=3600

It ends at the first finding and writes the input beside; once mended, that belongs into `FOUND` of
tests/fuzz/corpus.py. Findings so far: {found}, all mended.
"""


def collected() -> list[str]:
    """The ids of all cases in the files named above: `test_x.py::test_y[words]`."""
    files = {name.partition("::")[0] for _, tests in UNPACKING + PULLING for name in tests}
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-n0"]
    paths = [str(HERE / f"{file}.py") for file in sorted(files)]
    done = subprocess.run([*words, *paths], cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.removeprefix("tests/") for line in done.stdout.splitlines() if "::" in line]


def cases(test: str, ids: list[str]) -> int:
    """How many of the collected cases are this test's."""
    name, _, words = test.removesuffix("]").partition("[")
    file, _, function = name.partition("::")
    ours = [i for i in ids if re.fullmatch(rf"{file}\.py::{function}(\[.*\])?", i)]
    return len([i for i in ours if not words or any(word in i.partition("[")[2] for word in words.split("|"))])


def page(ids: list[str]) -> str:
    """The page; raises AssertionError for a test that does not exist."""
    text = _HEAD.format(
        tried=len(attacks.REFUSED) + len(attacks.CONTAINED),
        refused=len(attacks.REFUSED),
        contained=len(attacks.CONTAINED),
    )
    for title, clauses in (("Unpacking", UNPACKING), ("Pulling", PULLING)):
        text += f"\n## {title}\n| | cases | tests |\n|---|---|---|\n"
        for clause, tests in clauses:
            counts = Counter({test: cases(test, ids) for test in tests})
            missing = [test for test in tests if not counts[test]]
            assert not missing, f"no such tests: {missing}"
            shown = "<br>".join(f"`{test.replace('|', ' ')}`" for test in tests)
            text += f"| {clause} | {counts.total()} | {shown} |\n"
    from fuzz import corpus

    return text + _FUZZING.format(targets=", ".join(TARGETS), found=len(corpus.FOUND))


if __name__ == "__main__":
    PAGE.write_text(page(collected()), "utf-8")
