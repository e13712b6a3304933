"""Minimal Hub-compatible server on loopback for end-to-end tests of the real huggingface_hub client.

Standard library only (PyYAML is used for card data when present). In-memory, one process, not for production.
    with Hub(tokens={"hf_alice": "alice"}) as hub: ...  # hub.url -> value for HF_ENDPOINT
A root holds models/<ns>/<name>/ and datasets/<ns>/<name>/; revisions map "datasets/<ns>/<name>" to commit ids.
"""

import base64
import hashlib
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_EXT = re.compile(
    r"\.(safetensors|bin|pt|pth|model|parquet|arrow|gz|zip|npz|npy|onnx|h5|msgpack|gguf)$|(^|/)tokenizer\.json$"
)
VERBS = {
    "revision",
    "tree",
    "refs",
    "commits",
    "preupload",
    "commit",
    "resolve",
    "raw",
    "branch",
    "tag",
    "paths-info",
    "auth-check",
    "xet-write-token",
    "xet-read-token",
}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """The environment of a process whose Hub is the one on loopback, with a cache of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    ours = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **ours, "OMP_NUM_THREADS": "1"}


class HubError(Exception):
    def __init__(self, status, code=None, msg="", headers=(), **payload):
        self.status, self.code, self.msg, self.headers, self.payload = status, code, msg, dict(headers), payload


class Repo:
    def __init__(self, typ, rid, private=False):
        self.type, self.id, self.private, self.gated, self.created = typ, rid, private, False, now()
        self.branches, self.tags, self.prs, self.commits = {}, {}, {}, {}

    def commit(self, files, msg, parent=None, oid=None):
        oid = (
            oid
            or hashlib.sha1(
                repr((self.type, self.id, sorted(files.items()), msg, parent, time.time_ns())).encode()
            ).hexdigest()
        )
        self.commits[oid] = dict(files=files, title=msg, parent=parent, date=now())
        return oid

    def resolve(self, rev):
        oid = (
            self.branches.get(rev) or self.tags.get(rev) or self.prs.get(rev) or (rev if rev in self.commits else None)
        )
        if oid is None and re.fullmatch(r"[0-9a-f]{7,39}", rev or ""):
            oid = next((o for o in self.commits if o.startswith(rev)), None)
        if oid is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return oid


class Hub:
    def __init__(
        self,
        host="127.0.0.1",
        port=0,
        tokens=None,
        read_tokens=None,
        orgs=None,
        lfs_threshold=10 << 20,
        cdn_host="localhost",
        xet_cas=None,
    ):
        """Serves on a free port of loopback.

        cdn_host is the host name that LFS downloads redirect to: another name than the endpoint's, so that the client
        treats it as a CDN and drops its token; None serves them directly. xet_cas is an empty folder; large files
        then go through real Xet, by hf_xet's local:// store.
        """
        self.tokens, self.read_tokens, self.orgs = dict(tokens or {}), dict(read_tokens or {}), dict(orgs or {})
        self.lfs_threshold, self.cdn_host, self.xet_cas = lfs_threshold, cdn_host, xet_cas
        self.repos, self.blobs, self.log, self.lock = {}, {}, [], threading.RLock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.httpd = ThreadingHTTPServer((host, port), handler)
        self.httpd.daemon_threads = True
        self.port = self.httpd.server_address[1]
        self.url = f"http://{host}:{self.port}"

    def start(self):
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        return self

    def stop(self):
        self.httpd.shutdown()
        self.httpd.server_close()

    __enter__ = start

    def __exit__(self, *a):
        self.stop()

    def put_blob(self, data, lfs):
        """data: bytes or a Path (read lazily when served). Returns the file entry of a commit."""
        raw = data.read_bytes() if isinstance(data, Path) else data
        sha = hashlib.sha256(raw).hexdigest()
        self.blobs[sha] = data
        git = (
            raw
            if not lfs
            else f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(raw)}\n".encode()
        )
        return dict(oid=hashlib.sha1(b"blob %d\0" % len(git) + git).hexdigest(), sha256=sha, size=len(raw), lfs=lfs)

    def is_lfs(self, path, size):
        return size > 0 and bool(size > self.lfs_threshold or LFS_EXT.search(path))

    def xet_files(self):
        """{sha256: xet hash} of every file in the local:// store, read from its shard files (48-byte records)."""
        out, hx = {}, lambda b: "".join(f"{int.from_bytes(b[i : i + 8], 'little'):016x}" for i in (0, 8, 16, 24))
        for f in Path(self.xet_cas).glob("xet/xorbs/shards/*.mdb"):
            b, o = f.read_bytes(), 48
            while b[o : o + 32] != b"\xff" * 32:  # file section ends with a bookend record
                h, flags, n = hx(b[o : o + 32]), *(int.from_bytes(b[o + k : o + k + 4], "little") for k in (32, 36))
                o += 48 * (1 + n * (2 if flags >> 31 else 1))
                if flags >> 30 & 1:
                    out[hx(b[o : o + 32])] = h
                    o += 48
        return out

    def read(self, entry):
        b = self.blobs[entry["sha256"]]
        return b.read_bytes() if isinstance(b, Path) else b

    def create(self, typ, rid, private=False):
        r = self.repos[typ, rid] = Repo(typ, rid, private)
        r.branches["main"] = r.commit(
            {".gitattributes": self.put_blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)},
            "initial commit",
        )
        return r

    def seed(self, typ, rid, folder, shas=(), private=False):
        """Import a folder as a repo whose main (and each given 40-hex commit id) is that folder."""
        r, folder = self.create(typ, rid, private), Path(folder)
        files = {
            p.relative_to(folder).as_posix(): self.put_blob(p, self.is_lfs(p.name, p.stat().st_size))
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }
        for sha in list(shas) or [None]:
            r.branches["main"] = r.commit(files, "Upload folder", r.branches["main"], sha)
        return r

    def seed_root(self, root, revisions=None):
        for typ in ("model", "dataset"):
            for d in sorted(Path(root, typ + "s").glob("*/*")):
                if d.is_dir():
                    rid = f"{d.parent.name}/{d.name}"
                    self.seed(typ, rid, d, (revisions or {}).get(f"{typ}s/{rid}", ()))


class Handler(BaseHTTPRequestHandler):
    protocol_version, hub = "HTTP/1.1", None
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the client's acknowledgement of its headers

    # ---- plumbing
    def log_message(self, *a):
        pass

    def handle_any(self):
        self.body_, self.status_ = None, 0
        try:
            if self.command in (
                "GET",
                "HEAD",
            ):  # never hold the lock while sending: a streaming client may stop reading
                self.route()
            else:
                self.body()
                with self.hub.lock:
                    self.route()
        except HubError as e:
            h = {"X-Error-Message": e.msg, **({"X-Error-Code": e.code} if e.code else {}), **e.headers}
            self.send(e.status, {"error": e.msg, **e.payload}, h)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except Exception as e:  # a bug here must be visible to the test
            import traceback

            traceback.print_exc()
            self.send(500, {"error": repr(e)}, {"X-Error-Message": repr(e)})
        self.hub.log.append((self.command, self.path, self.status_))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def body(self):
        if self.body_ is None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                out = []
                while n := int(self.rfile.readline().split(b";")[0], 16):
                    out.append(self.rfile.read(n))
                    self.rfile.readline()
                self.rfile.readline()
                self.body_ = b"".join(out)
            else:
                self.body_ = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self.body_

    def json(self):
        b, ct = self.body(), self.headers.get("Content-Type", "")
        if "form-urlencoded" in ct:
            return {k: (v if k == "paths" else v[0]) for k, v in parse_qs(b.decode()).items()}
        return json.loads(b or b"{}")

    def send(self, status, payload=b"", headers=None, ctype=None):
        self.body()  # drain, so that keep-alive stays in step
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.status_ = status
        self.send_response(status)
        hs = {
            "Content-Type": ctype
            or ("application/json" if not isinstance(payload, bytes) else "application/octet-stream"),
            "Content-Length": str(len(data)),
            "X-Request-Id": "local",
            **(headers or {}),
        }
        for k, v in hs.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_file(self, data, headers):
        headers = {"Accept-Ranges": "bytes", **headers}
        if m := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            a, b = int(m[1]), min(int(m[2] or len(data) - 1), len(data) - 1)
            if a >= len(data):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return self.send(206, data[a : b + 1], {**headers, "Content-Range": f"bytes {a}-{b}/{len(data)}"})
        self.send(200, data, headers)

    # ---- auth
    def user(self):
        auth = self.headers.get("Authorization", "")
        if not auth:
            return None
        tok = auth.removeprefix("Bearer ")
        u = self.hub.tokens.get(tok) or self.hub.read_tokens.get(tok)
        if u is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return u

    def may_write(self, ns):
        u = self.user()
        if u is None:
            raise HubError(401, None, "Invalid username or password.")
        if self.headers["Authorization"].removeprefix("Bearer ") not in self.hub.tokens:
            raise HubError(403, None, "Forbidden: you must use a write token to upload to a repository.")
        if ns != u and ns not in self.hub.orgs.get(u, ()):
            raise HubError(403, None, f"Forbidden: pass a token of {ns} to write to its namespace.")
        return u

    def repo(self, typ, rid, write=False):
        r, u = self.hub.repos.get((typ, rid)), self.user()
        ns = rid.split("/")[0]
        if r is None or (r.private and ns != u and ns not in self.hub.orgs.get(u, ())):
            raise HubError(
                401 if u is None else 404,
                "RepoNotFound",
                "Invalid username or password." if u is None else "Repository not found",
            )
        if r.gated and ns != u and not write and u not in r.gated:
            raise HubError(401 if u is None else 403, "GatedRepo", f"Access to {typ} {rid} is restricted.")
        if write:
            self.may_write(ns)
        return r

    # ---- routes
    def route(self):
        u = urlsplit(self.path)
        self.q = {k: v[-1] for k, v in parse_qs(u.query).items()}
        s = [unquote(x) for x in u.path.strip("/").split("/")]
        if s[0] == "_cdn":
            return self.send_file(self.hub.read({"sha256": s[1]}), {"ETag": f'"{s[1]}"'})
        if s[0] == "_lfs":
            return self.lfs_object(s)
        if s[0] == "api":
            return self.api(s[1:])
        typ = {"datasets": "dataset", "spaces": "space"}.get(s[0], "model")
        s = s if typ == "model" else s[1:]
        i = next((k for k in (1, 2) if len(s) > k and s[k] in ("resolve", "raw")), None)
        if i:
            return self.resolve_file(typ, "/".join(s[:i]), s[i + 1], "/".join(s[i + 2 :]))
        if ".git/info/lfs/objects/batch" in u.path:
            return self.lfs_batch(typ, "/".join(s[:2]).removesuffix(".git"))
        raise HubError(404, None, "Not Found")

    def api(self, s):
        hub = self.hub
        if s[0] == "whoami-v2":
            if (me := self.user()) is None:
                raise HubError(401, None, "Invalid username or password.")
            role = "write" if self.headers["Authorization"].removeprefix("Bearer ") in hub.tokens else "read"
            return self.send(
                200,
                {
                    "type": "user",
                    "id": me,
                    "name": me,
                    "fullname": me,
                    "email": f"{me}@local.invalid",
                    "isPro": False,
                    "orgs": [{"type": "org", "name": o, "roleInOrg": "write"} for o in hub.orgs.get(me, ())],
                    "auth": {
                        "type": "access_token",
                        "accessToken": {"displayName": "t", "role": role, "createdAt": now()},
                    },
                },
            )
        if s[0] == "validate-yaml":
            return self.send(200, {"errors": [], "warnings": []})
        if s[0] == "agent-harnesses":
            return self.send(200, {"standardEnvVars": [], "harnesses": {}})
        if s[0] == "telemetry":
            return self.send(200, {})
        if s[0] == "repos" and s[1] == "create":
            d = self.json()
            ns = d.get("organization") or self.user() or ""
            typ, rid = d.get("type") or "model", f"{ns}/{d['name']}"
            self.may_write(ns)
            pre = "" if typ == "model" else typ + "s/"
            out = {"url": f"{hub.url}/{pre}{rid}", "name": rid, "id": rid}
            if (typ, rid) in hub.repos:
                raise HubError(
                    409, None, f"You already created this {typ} repo", url=out["url"]
                )  # create_repo(exist_ok=True) reads url
            hub.create(typ, rid, d.get("visibility") == "private" or bool(d.get("private")))
            return self.send(200, out)
        typ = {"models": "model", "datasets": "dataset", "spaces": "space"}.get(s[0])
        if typ is None:
            raise HubError(404, None, "Not Found")
        i = 2 if len(s) > 2 and s[2] in VERBS else 3
        rid, verb, rest = "/".join(s[1:i]), s[i] if len(s) > i else "", s[i + 1 :]
        r = self.repo(typ, rid, write=verb in ("preupload", "commit", "branch", "tag", "xet-write-token"))
        if verb in ("", "revision"):
            return self.send(200, self.info(r, r.resolve(rest[0] if rest else "main"), "blobs" in self.q))
        if verb == "auth-check":
            return self.send(200, {})
        if verb == "tree":
            oid, base = r.resolve(rest[0]), "/".join(rest[1:]).strip("/")
            files = r.commits[oid]["files"]
            if base and not any(p.startswith(base + "/") for p in files):
                raise HubError(404, "EntryNotFound", f"{base} does not exist on {rest[0]}", {"X-Repo-Commit": oid})
            return self.send(200, self.tree(r, oid, base, self.q.get("recursive", "").lower() in ("1", "true")))
        if verb == "paths-info":
            oid, d = r.resolve(rest[0]), self.json()
            files = r.commits[oid]["files"]
            out = []
            for p in d["paths"]:
                p = p.strip("/")
                if p in files:
                    out.append(self.node(r, oid, p))
                elif any(f.startswith(p + "/") for f in files):
                    out.append(self.folder(r, oid, p))
            return self.send(200, out)
        if verb == "refs":

            def listed(refs, kind):
                return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": o} for n, o in refs.items()]

            return self.send(
                200,
                {
                    "branches": listed(r.branches, "heads"),
                    "tags": listed(r.tags, "tags"),
                    "converts": [],
                    "pullRequests": [{"name": n, "ref": n, "targetCommit": o} for n, o in r.prs.items()],
                },
            )
        if verb == "commits":
            out, oid = [], r.resolve(rest[0])
            while oid:
                c = r.commits[oid]
                out.append(
                    {
                        "id": oid,
                        "title": c["title"],
                        "message": "",
                        "date": c["date"],
                        "authors": [{"user": rid.split("/")[0]}],
                    }
                )
                oid = c["parent"]
            return self.send(200, out)
        if verb in ("branch", "tag"):
            store, name = (r.branches, rest[0]) if verb == "branch" else (r.tags, self.json().get("tag", rest[0]))
            if self.command == "DELETE":
                store.pop(rest[0], None)
                return self.send(200, {})
            if name in store:
                raise HubError(409, None, "Reference already exists")
            store[name] = r.resolve(rest[0] if verb == "tag" else self.json().get("startingPoint") or "main")
            return self.send(200, {})
        if verb == "preupload":
            files, out = r.commits[r.resolve(rest[0])]["files"], []
            for f in self.json()["files"]:
                e = files.get(f["path"])
                lfs = hub.is_lfs(f["path"], f["size"])
                out.append(
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if lfs else "regular",
                        "shouldIgnore": False,
                        "oid": e and (e["sha256"] if e["lfs"] else e["oid"]),
                    }
                )
            return self.send(200, {"files": out, "commitOid": r.resolve(rest[0])})
        if verb == "commit":
            return self.commit(r, rest[0])
        if verb.startswith("xet-") and hub.xet_cas:
            exp = int(time.time()) + 3600  # hf_xet (Rust) reads the JSON body, the Python client the headers
            return self.send(
                200,
                {"casUrl": f"local://{hub.xet_cas}", "accessToken": "x", "exp": exp},
                {
                    "X-Xet-Cas-Url": f"local://{hub.xet_cas}",
                    "X-Xet-Access-Token": "x",
                    "X-Xet-Token-Expiration": str(exp),
                },
            )
        raise HubError(404, None, f"Not Found: {self.command} {verb}")

    # ---- repo contents
    def node(self, r, oid, p):
        e = r.commits[oid]["files"][p]
        lfs = (
            {
                "lfs": {"oid": e["sha256"], "size": e["size"], "pointerSize": 134},
                **({"xetHash": e["xet"]} if e.get("xet") else {}),
            }
            if e["lfs"]
            else {}
        )
        return {"type": "file", "path": p, "size": e["size"], "oid": e["oid"], **lfs, **self.last(r, oid)}

    def folder(self, r, oid, p):
        return {
            "type": "directory",
            "path": p,
            "size": 0,
            "oid": hashlib.sha1((oid + p).encode()).hexdigest(),
            **self.last(r, oid),
        }

    def last(self, r, oid):
        return {"lastCommit": {"id": oid, "title": r.commits[oid]["title"], "date": r.commits[oid]["date"]}}

    def tree(self, r, oid, base, recursive):
        out, dirs, pre = [], set(), base + "/" if base else ""
        for p in sorted(r.commits[oid]["files"]):
            if not p.startswith(pre):
                continue
            parts = p[len(pre) :].split("/")
            for k in range(1, len(parts) if recursive else min(2, len(parts))):
                d = pre + "/".join(parts[:k])
                if d not in dirs:
                    dirs.add(d)
                    out.append(self.folder(r, oid, d))
            if recursive or len(parts) == 1:
                out.append(self.node(r, oid, p))
        return out

    def info(self, r, oid=None, blobs=False):
        oid = oid or r.branches["main"]
        files = r.commits[oid]["files"]
        card = {}
        if "README.md" in files and (
            m := re.match(rb"---\r?\n(.*?)\r?\n---", self.hub.read(files["README.md"]), re.S)
        ):
            try:
                import yaml

                card = yaml.safe_load(m[1]) or {}
            except Exception:
                card = {}
        sib = [
            {
                "rfilename": p,
                **(
                    {
                        "size": e["size"],
                        "blobId": e["oid"],
                        **(
                            {"lfs": {"sha256": e["sha256"], "size": e["size"], "pointerSize": 134}} if e["lfs"] else {}
                        ),
                    }
                    if blobs
                    else {}
                ),
            }
            for p, e in sorted(files.items())
        ]
        card = json.loads(json.dumps(card, default=str))
        return {
            "_id": r.id,
            "id": r.id,
            **(
                {"modelId": r.id, "pipeline_tag": card.get("pipeline_tag"), "library_name": card.get("library_name")}
                if r.type == "model"
                else {}
            ),
            "author": r.id.split("/")[0],
            "sha": oid,
            "lastModified": r.commits[oid]["date"],
            "createdAt": r.created,
            "private": r.private,
            "gated": bool(r.gated) and "manual",
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": list(card.get("tags") or []),
            "siblings": sib,
            "cardData": card,
            "usedStorage": 0,
        }

    def resolve_file(self, typ, rid, rev, path):
        r = self.repo(typ, rid)
        oid = r.resolve(rev)
        e = r.commits[oid]["files"].get(path)
        h = {"X-Repo-Commit": oid}
        if e is None:
            raise HubError(404, "EntryNotFound", "Entry not found", h)
        if not e["lfs"]:
            return self.send_file(
                self.hub.read(e),
                {
                    **h,
                    "ETag": f'"{e["oid"]}"',
                    "Content-Disposition": f'inline; filename="{quote(path.split("/")[-1])}"',
                },
            )
        h |= {"X-Linked-Etag": f'"{e["sha256"]}"', "X-Linked-Size": str(e["size"]), "ETag": f'"{e["sha256"]}"'}
        if e.get("xet"):
            h |= {
                "X-Xet-Hash": e["xet"],
                "Link": f'<{self.hub.url}/api/{typ}s/{rid}/xet-read-token/{oid}>; rel="xet-auth"',
            }
        if self.hub.cdn_host is None:
            return self.send_file(self.hub.read(e), h)
        self.send(302, b"", {**h, "Location": f"http://{self.hub.cdn_host}:{self.hub.port}/_cdn/{e['sha256']}?sig=1"})

    def commit(self, r, rev):
        parent = r.resolve(rev)
        files, head = dict(r.commits[parent]["files"]), {}
        for line in self.body().splitlines():
            if not line.strip():
                continue
            d = json.loads(line)
            k, v = d["key"], d["value"]
            if k == "header":
                head = v
            elif k == "file":
                files[v["path"]] = self.hub.put_blob(base64.b64decode(v["content"]), False)
            elif k == "lfsFile":
                xet = self.hub.xet_cas and self.hub.xet_files().get(v["oid"])
                if not xet and v["oid"] not in self.hub.blobs:
                    raise HubError(400, None, f"LFS object {v['oid']} was not uploaded")
                files[v["path"]] = (
                    dict(
                        oid=hashlib.sha1(v["oid"].encode()).hexdigest(),
                        sha256=v["oid"],
                        size=v["size"],
                        lfs=True,
                        xet=xet,
                    )
                    if xet
                    else self.hub.put_blob(self.hub.blobs[v["oid"]], True)
                )
            elif k == "deletedFile":
                files.pop(v["path"], None)
            elif k == "deletedFolder":
                files = {p: e for p, e in files.items() if not p.startswith(v["path"].rstrip("/") + "/")}
        if head.get("parentCommit") and not parent.startswith(head["parentCommit"]):
            raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
        oid, out = r.commit(files, head.get("summary", ""), parent), {}
        if self.q.get("create_pr") == "1":
            n = len(r.prs) + 1
            r.prs[f"refs/pr/{n}"] = oid
            out = {"pullRequestUrl": f"{self.hub.url}/{r.id}/discussions/{n}"}
        elif rev in r.branches:
            r.branches[rev] = oid
        elif rev in r.prs:
            r.prs[rev] = oid
        else:
            raise HubError(404, "RevisionNotFound", f"{rev} is not a branch")
        pre = "" if r.type == "model" else r.type + "s/"
        self.send(
            200,
            {
                "success": True,
                "commitOid": oid,
                "commitUrl": f"{self.hub.url}/{pre}{r.id}/commit/{oid}",
                "hookOutput": "",
                **out,
            },
        )

    # ---- LFS
    def lfs_batch(self, typ, rid):
        self.repo(typ, rid, write=True)
        out, d, url = [], self.json(), self.hub.url
        for o in d["objects"]:
            x = {"oid": o["oid"], "size": o["size"]}
            if o["oid"] not in self.hub.blobs:
                up = {"href": f"{url}/_lfs/put/{o['oid']}"}
                x["actions"] = {"upload": up, "verify": {"href": f"{url}/_lfs/verify/{o['oid']}"}}
            out.append(x)
        self.send(200, {"transfer": "basic", "objects": out}, ctype="application/vnd.git-lfs+json")

    def lfs_object(self, s):
        op, oid, b = s[1], s[2], self.body()
        if op == "verify":
            if oid not in self.hub.blobs:
                raise HubError(404, None, "object missing")
            return self.send(200, {})
        if hashlib.sha256(b).hexdigest() != oid:
            raise HubError(400, None, "sha256 mismatch")
        self.hub.blobs[oid] = b
        self.send(200, {})
