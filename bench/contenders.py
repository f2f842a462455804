"""The proxies and the configuration of each: one worker, no access log, keep-alive to the upstream, streaming instead of
buffering to disk. Each forwards /api/… to the upstream without /api, sets Host and appends to X-Forwarded-For.

lean-proxy runs twice: with its defaults, that is with a listener and a route and no other key, and with the numbers of
go-proxy's files. `settings` says what a configuration chooses; the report prints it under its tables."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Site:
    """What a configuration depends on."""

    folder: Path
    binary: str
    port: int
    upstream: int
    connections: int = 1024  # nginx, HAProxy and lighttpd allocate memory per slot
    one_process: bool = False
    roots: str = ""  # the file with the upstream's certificate, if the upstream uses TLS

    @property
    def scheme(self) -> str:
        return "https" if self.roots else "http"


NAMED = """transport: {max_idle_conns: 10, max_idle_conns_per_host: 2, max_conns_per_host: 20}
proxy: {max_concurrent_requests: 100}
"""


class Unable(Exception):
    """The proxy does not support what is measured."""


# Writes the configuration into the site's folder; returns the command and its environment.
SetUp = Callable[[Site], tuple[list[str], dict[str, str]]]


@dataclass
class Contender:
    name: str
    set_up: SetUp
    binary: str
    version: str = ""
    settings: str = ""
    library_path: dict[str, str] = field(default_factory=dict)


def _lean_proxy(site: Site, more: str = "") -> tuple[list[str], dict[str, str]]:
    config = site.folder / "config.yaml"
    tls = f', tls: {{server_name: localhost, ca_file: "{site.roots}"}}' if site.roots else ""
    config.write_text(
        f"""listen: "127.0.0.1:{site.port}"
routes:
  - {{path: /api/, target: "{site.scheme}://127.0.0.1:{site.upstream}/"{tls}}}
{more}"""
    )
    return [site.binary, str(config)], {}


def lean_proxy(site: Site) -> tuple[list[str], dict[str, str]]:
    """With its defaults."""
    return _lean_proxy(site)


def lean_proxy_named(site: Site) -> tuple[list[str], dict[str, str]]:
    """With go-proxy's numbers."""
    return _lean_proxy(site, NAMED)


def lean_proxy_in_ten(site: Site) -> tuple[list[str], dict[str, str]]:
    """With its defaults and a budget of 10 MiB."""
    command, _ = _lean_proxy(site)
    return command, {"LEAN_PROXY_MEMORY": str(10 << 20)}


def nginx(site: Site) -> tuple[list[str], dict[str, str]]:
    folder = site.folder
    (folder / "logs").mkdir()  # for messages before it has read its configuration
    config = folder / "nginx.conf"
    tls = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {site.roots}; proxy_ssl_name localhost; proxy_ssl_protocols TLSv1.2 TLSv1.3;"
    config.write_text(
        f"""daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
{"master_process off;" if site.one_process else ""} {"user root;" if os.getuid() == 0 else ""}
events {{ worker_connections {site.connections}; }}
http {{
  access_log off; keepalive_timeout 60s; keepalive_requests 100000000; client_max_body_size 0; tcp_nodelay on;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_body_buffer_size 8k; client_header_timeout 30s; proxy_buffering off; proxy_buffer_size 8k; proxy_request_buffering off;
  upstream u {{ server 127.0.0.1:{site.upstream}; keepalive 100; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{site.port} backlog=4096;
    location /api/ {{
      {tls if site.roots else ""}
      proxy_pass {site.scheme}://u/; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host 127.0.0.1:{site.upstream};
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""
    )
    return [site.binary, "-p", str(folder), "-c", str(config)], {}


def haproxy(site: Site) -> tuple[list[str], dict[str, str]]:
    config = site.folder / "haproxy.cfg"
    tls = f" ssl verify required ca-file {site.roots} sni str(localhost) verifyhost localhost" if site.roots else ""
    config.write_text(
        f"""global
  nbthread 1
  maxconn {site.connections}
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
  timeout http-request 30s
  timeout http-keep-alive 60s
  timeout queue 30s
  http-reuse always
  option http-no-delay
  option forwardfor
frontend clients
  bind 127.0.0.1:{site.port} backlog 4096
  use_backend upstream if {{ path_beg /api/ }}
backend upstream
  http-request set-path %[path,bytes(4)]
  http-request set-header Host 127.0.0.1:{site.upstream}
  server one 127.0.0.1:{site.upstream}{tls}
"""
    )
    return [site.binary, "-db", "-q", "-f", str(config)], {}


def lighttpd(site: Site) -> tuple[list[str], dict[str, str]]:
    if site.roots:
        raise Unable("it does not support TLS to upstreams")
    folder = site.folder
    modules = folder / "modules"
    modules.mkdir()
    for place in ("/usr/lib/lighttpd", "/usr/lib64/lighttpd", "/usr/local/lib/lighttpd"):
        if Path(place, "mod_proxy.so").exists():
            shutil.copy(Path(place, "mod_proxy.so"), modules)
            break
    config = folder / "lighttpd.conf"
    config.write_text(
        f"""server.modules = ( "mod_proxy" )
server.document-root = "{folder}"
server.bind = "127.0.0.1"
server.port = {site.port}
server.listen-backlog = 4096
server.max-connections = {site.connections}
server.max-fds = {2 * site.connections + 100}
server.max-keep-alive-requests = 65535
server.max-keep-alive-idle = 60
server.max-request-size = 0
server.stream-response-body = 2
server.stream-request-body = 2
server.errorlog = "{folder}/error.log"
server.upload-dirs = ( "{folder}" )
$HTTP["url"] =^ "/api/" {{
  proxy.server = ( "" => ( ( "host" => "127.0.0.1", "port" => {site.upstream} ) ) )
  proxy.header = ( "map-urlpath" => ( "/api/" => "/" ), "map-host-request" => ( "-" => "127.0.0.1:{site.upstream}" ) )
}}
"""
    )
    return [site.binary, "-D", "-f", str(config), "-m", str(modules)], {}


def caddy(site: Site) -> tuple[list[str], dict[str, str]]:
    if site.roots:
        raise Unable("its set-up for a private root differs from version to version")
    folder = str(site.folder)
    config = site.folder / "Caddyfile"
    config.write_text(
        f"""{{
  admin off
  auto_https off
  persist_config off
  log {{
    level ERROR
  }}
}}
http://:{site.port} {{
  bind 127.0.0.1
  handle_path /api/* {{
    reverse_proxy 127.0.0.1:{site.upstream} {{
      header_up Host 127.0.0.1:{site.upstream}
      flush_interval -1
      transport http {{
        keepalive_idle_conns_per_host 100
        read_buffer 4096
        write_buffer 4096
      }}
    }}
  }}
}}
"""
    )
    small = {"GOMAXPROCS": "1", "GOMEMLIMIT": "24MiB", "HOME": folder, "XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
    return [site.binary, "run", "--config", str(config), "--adapter", "caddyfile"], small


@dataclass
class Peer:
    name: str
    set_up: SetUp
    ask_version: str
    settings: str


# by the program's name
PEERS: dict[str, Peer] = {
    "nginx": Peer(
        "nginx",
        nginx,
        "-v",
        "proxy_buffering and proxy_request_buffering off, proxy_buffer_size and client_body_buffer_size 8k, upstream keepalive 100, "
        "client_max_body_size 0, client_header_timeout 30s",
    ),
    "haproxy": Peer("HAProxy", haproxy, "-v", "nbthread 1, http-reuse always, http-no-delay, timeouts 60s (http-request 30s)"),
    "lighttpd": Peer("lighttpd", lighttpd, "-v", "stream-response-body 2, stream-request-body 2, max-request-size 0"),
    "caddy": Peer(
        "Caddy",
        caddy,
        "version",
        "GOMAXPROCS=1, GOMEMLIMIT=24MiB, flush_interval -1, read_buffer and write_buffer 4096, keepalive_idle_conns_per_host 100",
    ),
}

# nginx, HAProxy and lighttpd allocate memory per slot, so each measurement sets their maximum of connections.
SLOTS = "connections (nginx, HAProxy, lighttpd): 1024; 4096 in the rows of many clients and in 10 MiB, 12000 with 5,000 idle clients"


def ours(binary: str) -> list[Contender]:
    number = version([binary, "--version"])
    return [
        Contender("lean-proxy", lean_proxy, binary, number, "as shipped: a listener and a route, no other key"),
        Contender("lean-proxy, go-proxy's numbers", lean_proxy_named, binary, number, ", ".join(NAMED.split("\n")[:2])),
    ]


def find(program: str) -> Contender | None:
    """A peer; None if it is not installed."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    return None if path is None else peer(program, path)


def peer(program: str, path: str, suffix: str = "") -> Contender:
    known = PEERS[program]
    return Contender(known.name + suffix, known.set_up, path, version([path, known.ask_version]), known.settings)


def linkage(path: str) -> str:
    """How the binary is linked, by readelf."""
    headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True).stdout
    return "dynamic" if " INTERP " in headers or not headers else "static"


def version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True)
    number = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return number.group() if number else "of unknown version"
