"""Bytes damaged as disks, networks and editors damage them."""


def changed(content: bytes, changes) -> bytes:
    """Apply ("cut" | "flip" | "write" | "drop" | "twice", place in [0, 1], ...) one after the other."""
    held = bytearray(content)
    for kind, place, *what in changes:
        at = int(place * len(held))
        if kind == "cut":
            del held[at:]
        elif kind == "flip" and at < len(held):
            held[at] ^= what[0]
        elif kind == "write":
            held[at : at + len(what[0])] = what[0]
        elif kind == "drop":
            del held[at : at + what[0]]
        elif kind == "twice":
            held[at:at] = held[at : at + what[0]]
    return bytes(held)
