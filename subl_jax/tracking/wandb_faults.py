"""What kind of fault the W&B client met: the network's, which concerns all runs, or a refusal, which concerns one."""

import json
import pathlib
import re

_STATUS = re.compile(r"\b(?:HTTP|error|status|code)[: ]+([45]\d\d)\b", re.IGNORECASE)
_NETWORK = re.compile(
    r"timed? ?out|deadline exceeded|giving up after|connection|no such host|name resolution|unreachable|no route"
    r"|refused to connect|network|broken pipe|reset by peer|\bEOF\b|proxy|TLS|certificate|rate limit",
    re.IGNORECASE,
)


def of_network(error: BaseException) -> bool:
    """Whether the server is out of reach or unwell; else it has answered, and refuses the run that was asked for."""
    text = f"{type(error).__name__} {error}"
    if said := _STATUS.findall(text):
        return int(said[-1]) >= 500 or int(said[-1]) in (408, 429)
    return isinstance(error, OSError) or bool(_NETWORK.search(text))


def of_client(error: BaseException) -> bool:
    """Whether the client itself is at fault, such as a process of its that has ended; no server has said anything."""
    return type(error).__module__.startswith(("wandb.sdk.mailbox", "wandb.sdk.lib"))


def upload_refused(log: pathlib.Path) -> str | None:
    """What the client's own log says of an upload that the server refused for good; None where it says nothing.

    The client tells nobody else: it goes on writing to the disk, and ends the run as if all had arrived.
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if "filestream" in line and "fatal" in line:
            try:
                record = json.loads(line)
            except ValueError:
                return line
            return str(record.get("error") or record.get("msg") or line)
    return None
