"""Which addresses a server listens on and answers to: free ports, and names that a browser may know it by.

A web page of anybody's can have its own name point to 127.0.0.1 and so reach a server on loopback from the browser of
whoever visits it (DNS rebinding). What protects from that is to answer to known names only. MLflow's own list of names
has patterns such as `10.*`, which also fit the name `10.example.com`; so the list is made here, of exact names.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

from calm_lightning.errors import TrackingError

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::", "")
_NEXT_PORTS = 100


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on can be reached from this machine only."""
    return host in _LOOPBACK or host.startswith("127.")


def check_port(host: str, port: int) -> None:
    """Check that a server may listen on host:port.

    Raises:
        TrackingError: The port is taken or the address is not this machine's.
    """
    try:
        _bind(host, port)
    except OSError as error:
        raise TrackingError(
            f"cannot listen on {host}:{port} ({error.strerror}): "
            f"choose another port, for example --port {port % 65535 + 1}"
        ) from None


def choose_port(host: str, wanted: int | None, usual: int) -> int:
    """Return the port to listen on.

    Args:
        host: Address to listen on.
        wanted: The port asked for; 0 means any that is free, None the usual one or the next that is free.
        usual: The port where none was asked for.

    Raises:
        TrackingError: The port asked for is taken, or the address is not this machine's.
    """
    if wanted:
        check_port(host, wanted)
        return wanted
    for port in () if wanted == 0 else range(usual, usual + _NEXT_PORTS):
        try:
            return _bind(host, port)
        except OSError:
            continue
    try:
        return _bind(host, 0)
    except OSError as error:
        raise TrackingError(
            f"cannot listen on {host} ({error.strerror}): --host takes an address of this machine, such as 127.0.0.1"
        ) from None


def _bind(host: str, port: int) -> int:
    """Listen for a moment; returns the port.

    Raises:
        OSError: That is not possible.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def names_of(host: str) -> list[str]:
    """Return the names by which others may reach a server that listens on an address, those of loopback left out.

    Args:
        host: Address to listen on; "0.0.0.0" and "::" are all of this machine's.
    """
    if is_loopback(host):
        return []
    names = {socket.gethostname(), socket.getfqdn()}
    if host in _EVERYWHERE:
        with suppress(OSError):  # a machine that does not know its own name has the address below
            names |= {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
        names |= set(_outward_address())
    else:
        names.add(host)
    return sorted(name.lower() for name in names if not is_loopback(name) and "*" not in name)


def _outward_address() -> Sequence[str]:
    """Return the address that this machine's packets carry; none are sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation, which nobody has
        except OSError:
            return ()
        return (str(probe.getsockname()[0]),)


def allowed_hosts(names: Iterable[str]) -> str:
    """Return MLflow's `--allowed-hosts`: loopback and the given names, each with any port.

    The port is free, since the one at this end of a tunnel is the user's choice.

    Args:
        names: Names beside those of loopback.
    """
    hosts = [_bracketed(name) for name in (*_LOOPBACK, *names)]
    # In MLflow's patterns "[" opens a set of characters, but only where there is a "*".
    return ",".join([*hosts, *(host.replace("[", "[[]") + ":*" for host in hosts)])


def allowed_origins(names: Iterable[str], port: int) -> str:
    """Return MLflow's `--cors-allowed-origins`: the pages of this server under the given names; "" where there is none.

    Args:
        names: Names beside those of loopback, whose pages are always allowed.
        port: The server's port.
    """
    origins = []
    for name in map(_bracketed, names):
        origins += [f"http://{name}:{port}", f"http://{name}", f"https://{name}"]
    return ",".join(origins)


def url_of(host: str, port: int) -> str:
    """Return the address for this machine's browser."""
    here = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{_bracketed(here)}:{port}"


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name
