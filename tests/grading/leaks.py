"""Look for a key's secret, and for what derives from it, in files and in all that is packed in them."""

import base64
import io
import json
import zipfile


def forms(key):
    """The key's secret and all seeds, as they could be written."""
    secret = bytes.fromhex(json.loads(key.path.read_text("utf-8"))["secret"])
    found = {secret, secret[::-1]}
    for assignment in key.assignments:
        for item in assignment.exercises:
            for seed in key.seeds(assignment.id, item.id):
                found |= {seed.to_bytes(8, "big"), seed.to_bytes(8, "little"), str(seed).encode()}
                found |= {f"{seed:x}".encode(), f"{seed:X}".encode()}
    for raw in [form for form in found if len(form) in (8, 32)]:
        found |= {raw.hex().encode(), raw.hex().upper().encode()}
        for shift in range(3):  # wherever it begins within what is encoded
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                found.add(encode(b"\0" * shift + raw)[(0, 2, 3)[shift] : -4].rstrip(b"="))
    return found


def everything(data, name=""):
    """(name, bytes) of a file, and of all that is packed in it."""
    yield name, name.encode()
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield f"{name} (comment)", archive.comment
            for member in archive.infolist():
                yield f"{name}:{member.filename}", member.comment + member.extra
                yield from everything(archive.read(member), f"{name}:{member.filename}")


def leaks(data, key, name=""):
    return {where for where, content in everything(data, name) for form in forms(key) if form in content}
