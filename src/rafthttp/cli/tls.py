"""TLS of the commands: the files, the contexts made of them, and how they are loaded again.

Knows `ssl` and files; one authority signs the certificates of all members and clients.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rafthttp.cli.output import CommandFailedError

CERT_HELP: Final = "This side's certificate, with its chain (PEM)."
KEY_HELP: Final = "Its private key (PEM, without a passphrase)."
CA_HELP: Final = "The authority that signs the others' certificates (PEM)."


@dataclass(frozen=True, slots=True)
class Material:
    """The files of one side; `ca` None means the system's authorities."""

    cert: Path | None
    key: Path | None
    ca: Path | None

    def client_context(self) -> ssl.SSLContext:
        """For dialling. A certificate, where there is one, is shown to who asks.

        Raises:
            CommandFailedError: a file cannot be used.
        """
        context = self._context(ssl.Purpose.SERVER_AUTH)
        if self.cert is not None:
            self.load_into(context)
        return context

    def server_context(self) -> ssl.SSLContext:
        """For serving; with an authority given, only to clients with a certificate of it.

        Raises:
            CommandFailedError: a file cannot be used.
        """
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        if self.ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        self.load_into(context)
        return context

    def load_into(self, *contexts: ssl.SSLContext) -> None:
        """Read certificate and key, for the handshakes from now on; all or nothing.

        Raises:
            CommandFailedError: the files cannot be used; the contexts stay as they were.
        """
        assert self.cert is not None, "checked with the options"
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a key that does not fit spoils a context
        for context in (trial, *contexts):
            try:
                # An empty passphrase: OpenSSL would ask the terminal for one.
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ValueError) as error:
                raise CommandFailedError(
                    f"cannot use the certificate {self.cert} with the key {self.key}:"
                    f" {_reason(error)}"
                ) from None

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(purpose, cafile=self.ca)
        except OSError as error:
            raise CommandFailedError(
                f"cannot use the authority {self.ca}: {_reason(error)}"
            ) from None


def read_material(cert: Path | None, key: Path | None, ca: Path | None) -> Material | None:
    """The options together; None where none is given.

    Raises:
        CommandFailedError: a certificate without a key, or a key without a certificate.
    """
    if (cert is None) != (key is None):
        raise CommandFailedError("--tls-cert and --tls-key go together: give both")
    return None if cert is None and ca is None else Material(cert, key, ca)


_client: ContextVar[ssl.SSLContext | None] = ContextVar("_client", default=None)


def client_context() -> ssl.SSLContext | None:
    """What the options of the command that runs say; None: the usual authorities."""
    return _client.get()


def with_tls(command: Callable[..., None]) -> Callable[..., None]:
    """Give a client's command the options --tls-ca, --tls-cert and --tls-key."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        files = [kwargs.pop(name) for name in ("tls_cert", "tls_key", "tls_ca")]
        material = read_material(*files)
        token = _client.set(None if material is None else material.client_context())
        try:
            command(*args, **kwargs)
        finally:
            _client.reset(token)

    own = signature(command, eval_str=True)
    options = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[Path | None, typer.Option(metavar="FILE", help=text)],
        )
        for name, text in (("tls_ca", CA_HELP), ("tls_cert", CERT_HELP), ("tls_key", KEY_HELP))
    ]
    extended = own.replace(parameters=[*own.parameters.values(), *options])
    run.__signature__ = extended  # type: ignore[attr-defined]  # inspect's own protocol
    run.__annotations__ = {p.name: p.annotation for p in extended.parameters.values()}
    del run.__wrapped__  # its signature would be found first
    return run


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "they are not PEM").replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error).lower()
