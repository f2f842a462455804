"""The proxies and how each is set up: one worker, no access log, kept-alive connections upstream, streaming instead of
buffering to disk. Every one takes /api/… to the upstream without /api, sets Host and appends to X-Forwarded-For."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Site:
    """What a set-up needs to know."""

    folder: Path
    binary: str
    port: int
    upstream: int
    connections: int = 1024  # nginx, HAProxy and lighttpd allot memory per slot
    one_process: bool = False
    roots: str = ""  # the file with the upstream's certificate, where it is reached by TLS

    @property
    def scheme(self) -> str:
        return "https" if self.roots else "http"


class Unable(Exception):
    """The proxy cannot do it."""


# Writes its files into the site's folder; the command and its environment.
SetUp = Callable[[Site], tuple[list[str], dict[str, str]]]


@dataclass
class Contender:
    name: str
    set_up: SetUp
    binary: str
    version: str = ""
    library_path: dict[str, str] = field(default_factory=dict)


def lean_proxy(site: Site) -> tuple[list[str], dict[str, str]]:
    # as wide as the others: memory alone bounds it
    config = site.folder / "config.yaml"
    tls = f', tls: {{server_name: localhost, ca_file: "{site.roots}"}}' if site.roots else ""
    config.write_text(
        f"""listen: "127.0.0.1:{site.port}"
routes:
  - {{path: /api/, target: "{site.scheme}://127.0.0.1:{site.upstream}/"{tls}}}
transport: {{max_idle_conns: 100, max_idle_conns_per_host: 100, max_conns_per_host: 0}}
proxy: {{max_concurrent_requests: 0}}
"""
    )
    return [site.binary, str(config)], {}


def lean_proxy_in_ten(site: Site) -> tuple[list[str], dict[str, str]]:
    """With a budget of 10 MiB."""
    command, _ = lean_proxy(site)
    return command, {"LEAN_PROXY_MEMORY": str(10 << 20)}


def nginx(site: Site) -> tuple[list[str], dict[str, str]]:
    folder = site.folder
    config = folder / "nginx.conf"
    tls = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {site.roots}; proxy_ssl_name localhost; proxy_ssl_protocols TLSv1.2 TLSv1.3;"
    config.write_text(
        f"""daemon off; worker_processes 1; worker_rlimit_nofile 30000; pid {folder}/nginx.pid; error_log {folder}/error.log crit;
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
        raise Unable("it speaks no TLS to upstreams")
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
server.max-keep-alive-requests = 100000000
server.max-keep-alive-idle = 60
server.max-request-size = 0
server.stream-response-body = 2
server.stream-request-body = 2
server.errorlog = "{folder}/error.log"
server.upload-dirs = ( "{folder}" )
$HTTP["url"] =~ "^/api/" {{
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


# by the program's name
PEERS: dict[str, tuple[str, SetUp, str]] = {
    "nginx": ("nginx", nginx, "-v"),
    "haproxy": ("HAProxy", haproxy, "-v"),
    "lighttpd": ("lighttpd", lighttpd, "-v"),
    "caddy": ("Caddy", caddy, "version"),
}


def find(program: str) -> Contender | None:
    """An installed peer; None where it is not."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path is None:
        return None
    name, set_up, ask = PEERS[program]
    return Contender(name, set_up, path, version([path, ask]))


def version(command: list[str]) -> str:
    said = subprocess.run(command, capture_output=True, text=True)
    number = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return number.group() if number else "of unknown version"
