"""The chapter on gRPC, from `polyserve.proto` and the comments in it."""

import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2 as dpb

from polyserve.api.reference.tables import table
from polyserve_proto.generate import PROTO, ROOT

# Field numbers of descriptor.proto, which paths to comments are made of.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, NESTED_ENUMS, METHODS, VALUES = 2, 3, 4, 2, 2

Field = dpb.FieldDescriptorProto
TYPES = {number: name.removeprefix("TYPE_").lower() for name, number in Field.Type.items()}
Path_ = tuple[int, ...]


def rpc_chapter() -> str:
    """Every RPC, then every message. A field is honoured; an unknown one is refused."""
    described = _described()
    comments = {tuple(place.path): _comment(place) for place in described.source_code_info.location}
    parts = ["## gRPC\n", comments.get((12,), "") and f"{comments[12,]}\n"]
    for number, service in enumerate(described.service):
        rows = [
            [f"`{m.name}`", _link(m.input_type), ("stream of " if m.server_streaming else "") + _link(m.output_type),
             comments.get((SERVICES, number, METHODS, place), "")]
            for place, m in enumerate(service.method)
        ]  # fmt: skip
        parts.append(f"### {described.package}.{service.name}\n")
        parts.append(table(("RPC", "takes", "answers with", "meaning"), rows))
    for number, message in enumerate(described.message_type):
        parts += _message(message, (MESSAGES, number), comments)
    for number, enum in enumerate(described.enum_type):
        parts.append(_enum(enum, (ENUMS, number), comments))
    return "\n".join(parts)


def _described() -> dpb.FileDescriptorProto:
    """The compiled .proto file with its comments, which the generated code leaves out."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        words = [f"--proto_path={ROOT}", f"--descriptor_set_out={out}", "--include_source_info", str(PROTO)]
        if protoc.main(["protoc", *words]) != 0:
            raise RuntimeError(f"protoc refused {ROOT / PROTO}")
        return dpb.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def _comment(place: dpb.SourceCodeInfo.Location) -> str:
    detached = place.leading_detached_comments
    text = place.leading_comments or place.trailing_comments or (detached[0] if detached else "")
    return " ".join(text.split())


def _message(message: dpb.DescriptorProto, path: Path_, comments: dict[Path_, str]) -> list[str]:
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    rows = []
    for place, field in enumerate(message.field):
        kind = _kind(field, entries.get(field.type_name.rpartition(".")[2]))
        in_oneof = field.HasField("oneof_index") and not field.proto3_optional
        notes = [f"one of `{message.oneof_decl[field.oneof_index].name}`"] if in_oneof else []
        notes.append(comments.get((*path, FIELDS, place), ""))
        rows.append([f"`{field.name}`", str(field.number), kind, "; ".join(filter(None, notes))])
    about = comments.get(path, "")
    written = table(("field", "number", "type", "meaning"), rows) if rows else "No fields.\n"
    parts = [f"#### Message {message.name}\n\n{about + chr(10) * 2 if about else ''}{written}"]
    parts += [_enum(enum, (*path, NESTED_ENUMS, place), comments) for place, enum in enumerate(message.enum_type)]
    return parts


def _enum(enum: dpb.EnumDescriptorProto, path: Path_, comments: dict[Path_, str]) -> str:
    rows = [
        [f"`{value.name}`", str(value.number), comments.get((*path, VALUES, place), "")]
        for place, value in enumerate(enum.value)
    ]
    return f"#### Enum {enum.name}\n\n{table(('value', 'number', 'meaning'), rows)}"


def _kind(field: Field, entry: dpb.DescriptorProto | None) -> str:
    if entry is not None:
        return f"map of {_kind(entry.field[0], None)} to {_kind(entry.field[1], None)}"
    kind = TYPES[field.type]
    if field.type_name:
        kind = _link(field.type_name, kind=kind)
    if field.label == Field.LABEL_REPEATED:
        return f"list of {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _link(type_name: str, *, kind: str = "message") -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{kind}-{name.lower()})"
