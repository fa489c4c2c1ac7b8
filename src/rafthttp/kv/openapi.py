"""The HTTP API as an OpenAPI 3.1 description: data, nothing else."""

from __future__ import annotations

from typing import Any, Final

_ERROR: Final[dict[str, Any]] = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Error"}}
}
_CONSISTENCY: Final[dict[str, Any]] = {"$ref": "#/components/parameters/consistency"}
_KEY: Final[dict[str, Any]] = {"$ref": "#/components/parameters/key"}


def _error(text: str) -> dict[str, Any]:
    return {"description": text, "content": _ERROR}


def _json(schema: str, text: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": text, "content": content}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_FAILURES: Final[dict[str, Any]] = {
    "400": _error("The key or a parameter cannot be understood."),
    "401": _error("A bearer token is needed."),
    "403": _error("This client may not use the service."),
    "503": _error("Not done, and never will be (`outcome` is definite); see Retry-After."),
}
_WRITE_FAILURES: Final[dict[str, Any]] = {
    **_FAILURES,
    "410": _error("The session of this request is forgotten: open another."),
    "422": _error("Another request was made under this `Idempotency-Key`."),
    "501": _error("The service runs without sessions: it remembers no `Idempotency-Key`."),
    "504": _error("Whether it was done is not known (`outcome` is unknown)."),
}
_IDEMPOTENCY_KEY: Final[dict[str, Any]] = {"$ref": "#/components/parameters/idempotencyKey"}
_BYTES: Final[dict[str, Any]] = {"application/octet-stream": {}}
_TEXT: Final[dict[str, Any]] = {"type": "string"}
_COUNT: Final[dict[str, Any]] = {"type": "integer", "minimum": 0}
_LEADER: Final[dict[str, Any]] = {
    "oneOf": [_object(id=_TEXT, address=_TEXT), {"type": "null"}],
    "description": "Who leads, where known.",
}

_PATHS: Final[dict[str, Any]] = {
    "/kv/{key}": {
        "parameters": [_KEY],
        "get": {
            "summary": "Read a value.",
            "parameters": [_CONSISTENCY],
            "responses": {
                "200": {
                    "description": "The value; `ETag` is its SHA-256.",
                    "content": _BYTES,
                },
                "404": _error("There is no such key."),
                **_FAILURES,
            },
        },
        "put": {
            "summary": "Store the body.",
            "parameters": [_IDEMPOTENCY_KEY],
            "requestBody": {"required": True, "content": _BYTES},
            "responses": {
                "204": {"description": "Stored."},
                "413": _error("The value is over the entry limit."),
                **_WRITE_FAILURES,
            },
        },
        "delete": {
            "summary": "Delete a key; it need not be there.",
            "parameters": [_IDEMPOTENCY_KEY],
            "responses": {"204": {"description": "The key is gone."}, **_WRITE_FAILURES},
        },
    },
    "/kv": {
        "get": {
            "summary": "List keys in order, a page at a time.",
            "parameters": [
                {"name": "prefix", "in": "query", "schema": _TEXT},
                {
                    "name": "after",
                    "in": "query",
                    "schema": _TEXT,
                    "description": "`next` of the page before.",
                },
                {
                    "name": "limit",
                    "in": "query",
                    "schema": {"type": "integer", "minimum": 1, "maximum": 10_000},
                },
                _CONSISTENCY,
            ],
            "responses": {"200": _json("Keys", "One page."), **_FAILURES},
        }
    },
    "/sessions": {
        "post": {
            "summary": "Begin a session of numbered requests (see `Idempotency-Key`).",
            "responses": {
                "201": _json("Session", "It lasts an hour beyond its last use."),
                **_FAILURES,
                "501": _error("The service runs without sessions."),
            },
        }
    },
    "/status": {
        "get": {
            "summary": "What this node knows of itself and of the cluster.",
            "responses": {"200": _json("Status", "Now."), **_FAILURES},
        }
    },
    "/healthz": {
        "get": {
            "summary": "Whether the node takes part; needs no token.",
            "security": [],
            "responses": {
                "200": {"description": "It does."},
                "503": {"description": "It is stopped, or its disk failed."},
            },
        }
    },
    "/leave": {
        "post": {
            "summary": "Remove this node from its cluster.",
            "responses": {
                "200": {"description": "It has left."},
                "409": _error("It is the last voter: just stop it."),
                **_FAILURES,
            },
        }
    },
    "/transfer": {
        "post": {
            "summary": "Hand leadership over; only the leader can.",
            "parameters": [
                {
                    "name": "to",
                    "in": "query",
                    "schema": _TEXT,
                    "description": "A voter's id; left out, the voter that has most of the log.",
                }
            ],
            "responses": {
                "200": {
                    "description": "Who leads now.",
                    "content": {"application/json": {"schema": _object(leader=_LEADER)}},
                },
                **_FAILURES,
            },
        }
    },
}

_SCHEMAS: Final[dict[str, Any]] = {
    "Error": _object(
        error=_TEXT,
        outcome={"enum": ["definite", "unknown"]},
        leader=_LEADER,
    ),
    "Session": _object(session={"type": "string", "pattern": "^[0-9a-f]{32}$"}),
    "Keys": _object(
        prefix=_TEXT,
        keys={"type": "array", "items": _object(key=_TEXT, size=_COUNT)},
        next={"type": ["string", "null"]},
    ),
    "Status": _object(
        id=_TEXT,
        address=_TEXT,
        state={"enum": ["follower", "candidate", "leader", "shutdown"]},
        term=_COUNT,
        leader=_LEADER,
        commit_index=_COUNT,
        applied_index=_COUNT,
        last_index=_COUNT,
        servers={
            "type": "array",
            "items": _object(
                id=_TEXT,
                address=_TEXT,
                suffrage={"enum": ["voter", "nonvoter", "staging"]},
            ),
        },
    ),
}

DESCRIPTION: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "rafthttp key-value service",
        "version": "1",
        "description": "A replicated dictionary; any node of the cluster answers.",
    },
    "security": [{"token": []}, {}],
    "paths": _PATHS,
    "components": {
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        "schemas": _SCHEMAS,
        "parameters": {
            "key": {
                "name": "key",
                "in": "path",
                "required": True,
                "schema": {**_TEXT, "minLength": 1},
                "description": "Any text of at most 4096 bytes of UTF-8; slashes may stand bare.",
            },
            "idempotencyKey": {
                "name": "Idempotency-Key",
                "in": "header",
                "schema": {**_TEXT, "maxLength": 300},
                "description": (
                    "A repeat of the request with the same key is answered as the first one was,"
                    " and changes nothing: for at least 10 minutes, 24 hours as a rule. Or"
                    ' `"SESSION";seq=7;low=3`: request 7 of a session, whose client does not ask'
                    " for requests below 3 again."
                ),
            },
            "consistency": {
                "name": "consistency",
                "in": "query",
                "schema": {"enum": ["linearizable", "stale"], "default": "linearizable"},
            },
        },
    },
}
