"""Signatures of releases: who may write a store need not be who decides what is served from it.

    signatures/<number>.json   who signed release <number>, beside the releases, so that records keep their format

Signed (Ed25519) is what answers: the release's number, its root, the route of each task by digest, and the precisions.
A digest names all that a route needs, so nothing of it can be replaced. What a release says for people, its reason and
its time, is not signed: a copy in another store keeps its signatures as long as it keeps its number.

Keys are PEM files as OpenSSL makes them: `openssl genpkey -algorithm ed25519`.
"""

import base64
import binascii
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from models.errors import InvalidConfig, PublishConflict, UntrustedRelease
from models.files import ATTEMPTS, Files, change_file
from models.records import decode, encode
from models.release import Release

FOLDER = "signatures"
CONTEXT = b"mu2net release 1\n"  # so that a signature of ours is one of nothing else
RAW_BYTES = 32  # of a public key
MAX_KEY_FILE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ReleaseSignature:
    key: str  # the public key, 32 bytes in base64
    signature: str  # 64 bytes in base64


@dataclass(frozen=True, slots=True)
class ReleaseSignatures:
    """All signatures of one release. What of them counts is decided by whom a server trusts."""

    signatures: tuple[ReleaseSignature, ...] = ()
    format_version: int = 1


Signer = Callable[[Files, Release], None]  # signs a release in its place


def signature_name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def signed_content(release: Release) -> bytes:
    """Return what a signature of a release is of."""
    content = {
        "number": release.number,
        "root": release.root,
        "tasks": dict(release.tasks),
        "precisions": dict(release.precisions),
    }
    return CONTEXT + json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()


def new_key(path: Path) -> str:
    """Write a private key to `path`, for this user alone, and its public key to `path`.pub; return the public key.

    Raises:
        InvalidConfig: one of the files is there already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    beside = path.with_name(f"{path.name}.pub")
    if beside.exists():
        raise InvalidConfig(f"{beside} is there already: choose another name, since a key is never replaced")
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
            file.write(private)
        beside.write_bytes(public)
    except FileExistsError as error:
        raise InvalidConfig(f"{path} is there already: choose another name, since a key is never replaced") from error
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be written ({error.strerror}): choose a folder that is yours") from error
    return _text(key.public_key())


@dataclass(frozen=True)
class PrivateKey:
    """Signs releases. Made by `load_signer`."""

    _key: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> str:
        return _text(self._key.public_key())

    def __call__(self, files: Files, release: Release) -> None:
        """Put this key's signature to those of a release; signing again changes nothing."""
        made = ReleaseSignature(self.public, base64.b64encode(self._key.sign(signed_content(release))).decode())
        add_signatures(files, release.number, [made])


def load_signer(path: str | Path) -> PrivateKey:
    """Return the private key in a PEM file.

    Raises:
        InvalidConfig: there is none, others may read it, or it is of another kind.
    """
    data = _key_file(Path(path))
    if Path(path).stat().st_mode & 0o077:
        raise InvalidConfig(f"{path} may be read by others than its owner: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidConfig(
            f"{path} is no private key that can be read ({error}): make one with 'mu2net releases keygen FILE'"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidConfig(f"{path} is a private key of another kind than Ed25519: make one with 'keygen'")
    return PrivateKey(key)


def _key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise InvalidConfig(f"the key {path} cannot be read ({error.strerror}): check the path") from error


@dataclass(frozen=True, slots=True)
class Trust:
    """The public keys of whom a server believes; at least one."""

    keys: frozenset[str]

    @classmethod
    def of(cls, text: str | Sequence[str]) -> "Trust":
        """Return the trust in public keys, each a PEM file or 32 bytes in base64; as one text with commas between.

        Raises:
            InvalidConfig: no key at all, or one that cannot be read.
        """
        parts = text.split(",") if isinstance(text, str) else text
        given = [part.strip() for part in parts if part.strip()]
        if not given:
            raise InvalidConfig("no key to trust is given: name a public key's file, or the key itself in base64")
        return cls(frozenset(map(_public_key, given)))

    def check(self, files: Files, release: Release) -> None:
        """Raise UntrustedRelease unless one of the keys signed just this release."""
        shown = f"release {release.number} of {files.shown()}"
        advice = f"sign it with 'mu2net releases sign {files.shown()} {release.number} --key FILE'"
        found = read_signatures(files, release.number)
        trusted = [signature for signature in found if signature.key in self.keys]
        if any(_fits(signature, release) for signature in trusted):
            return
        if trusted:
            raise UntrustedRelease(
                f"{shown} is not what was signed by {_named(trusted)}: somebody changed it, or the signature is of "
                f"another store's release; look at it, then {advice}"
            )
        if found:
            raise UntrustedRelease(f"{shown} is signed by {_named(found)} only, which is not trusted here: {advice}")
        raise UntrustedRelease(f"{shown} is not signed, and only signed releases are trusted here: {advice}")


def read_signatures(files: Files, number: int) -> tuple[ReleaseSignature, ...]:
    """Return all signatures of a release; DamagedObject if their file is damaged."""
    name = signature_name(number)
    try:
        return decode(ReleaseSignatures, files.read(name), files.shown(name)).signatures
    except FileNotFoundError:
        return ()


def add_signatures(files: Files, number: int, made: Sequence[ReleaseSignature]) -> None:
    """Put signatures to those of a release, each key's in place of its former one; others' stay."""
    name = signature_name(number)
    keys = {signature.key for signature in made}

    def with_made(data: bytes | None) -> bytes:
        found = () if data is None else decode(ReleaseSignatures, data, files.shown(name)).signatures
        return encode(ReleaseSignatures((*(signature for signature in found if signature.key not in keys), *made)))

    if not change_file(files, name, with_made):
        raise PublishConflict(f"{files.shown(name)} was changed by others {ATTEMPTS} times meanwhile: sign again")


def fitting_signatures(files: Files, release: Release) -> list[ReleaseSignature]:
    """Return those signatures of a release that are of its content, whosoever they are."""
    return [signature for signature in read_signatures(files, release.number) if _fits(signature, release)]


def _fits(signature: ReleaseSignature, release: Release) -> bool:
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.key, validate=True))
        key.verify(base64.b64decode(signature.signature, validate=True), signed_content(release))
    except (InvalidSignature, ValueError):
        return False
    return True


def _public_key(text: str) -> str:
    raw: bytes | None = None
    with suppress(binascii.Error, ValueError):
        raw = base64.b64decode(text, validate=True)
    if raw is not None and len(raw) == RAW_BYTES:
        return base64.b64encode(raw).decode()
    data = _key_file(Path(text))
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidConfig(
            f"{text} is no public key that can be read ({error}): give the .pub file that 'mu2net releases keygen' "
            "wrote, or the 32 bytes of the key in base64"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidConfig(f"{text} is a public key of another kind than Ed25519: make a pair with 'releases keygen'")
    return _text(key)


def _text(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def _named(signatures: Sequence[ReleaseSignature]) -> str:
    return ", ".join(sorted({signature.key[:44] for signature in signatures}))
