# The keys of the configuration as NixOS options. `null` means the program's default, which is defined only in the
# program. Keys that are not listed here are passed unchanged, and `lean-proxy --check` checks them.
{ lib, yaml }:

let
  inherit (lib) mkOption types;

  # A section of the file: known keys are typed, others are free.
  section =
    options:
    types.submodule {
      freeformType = yaml.type;
      inherit options;
    };
  part =
    description: options:
    mkOption {
      type = section options;
      default = { };
      inherit description;
    };
  key =
    type: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };

  whole = types.ints.unsigned;
  seconds = types.either (types.addCheck types.number (n: n >= 0)) types.str // {
    description = ''number of seconds, 0 or more, or a time such as "1m30s"'';
  };
  bytes = types.either whole types.str // {
    description = ''number of bytes, or a size such as "64KiB"'';
  };
  mode = types.strMatching "0[0-7]{3}" // {
    description = ''octal mode ("0660")'';
  };
  names = types.listOf types.str;
  origin = types.strMatching ''\*|null|[a-z][a-z0-9+.-]*://[^/ ]+'' // {
    description = ''origin ("https://app.example.com", "https://*.example.com", "http://localhost:*", "*" or "null")'';
  };
  path = types.strMatching "/.*" // {
    description = ''path that starts with "/"'';
  };
  target = types.strMatching "((https?|h2c)://[^/?# ]+[^?# ]*|unix:/.+)" // {
    description = ''"http://", "h2c://", "https://" or "unix:/" address without query'';
  };
  # An address with a variable is checked by the program only.
  address =
    types.strMatching "(.*:[0-9]+|unix:/.+|fd:.+|.*[$][{][A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?}.*)"
    // {
      description = ''address (":80", "127.0.0.1:80", "[::1]:80", ":''${PORT:-80}", "unix:/run/x.sock" or "fd:NAME")'';
    };

  cors = {
    allowed_origins = key (types.listOf origin) "Origins whose pages may read responses. Empty: CORS is off.";
    allowed_methods = key names ''Methods that a preflight allows; `["*"]`: the one asked for.'';
    allowed_headers = key names ''Request headers that a preflight allows; `["*"]`: those asked for.'';
    exposed_headers = key names "Response headers that a page may read. Empty: the upstream decides.";
    allow_credentials = key (types.either types.bool (
      types.enum [ "auto" ]
    )) "Whether requests with cookies are allowed; `auto`: the upstream decides.";
    max_age = key (types.ints.between (
      -1
    ) 2147483647) "Seconds that a browser may cache a preflight; -1: the header is not sent.";
  };

  changes = {
    set = mkOption {
      type = types.attrsOf types.str;
      default = { };
      description = "Headers to set.";
    };
    remove = mkOption {
      type = names;
      default = [ ];
      description = "Headers to remove.";
    };
  };
  file = types.strMatching "/.+" // {
    description = ''path of a file, as text, so that it is not copied to the store'';
  };
  listener = types.either address (section {
    address = mkOption {
      type = address;
      example = ":443";
      description = "Where clients are awaited.";
    };
    tls = key (section {
      certificates = mkOption {
        type = types.nonEmptyListOf (section {
          cert_file = mkOption {
            type = file;
            description = "The chain, a PEM file.";
          };
          key_file = mkOption {
            type = file;
            description = "The key of its first certificate, a PEM file; see {option}`services.leanProxy.credentials`.";
          };
        });
        description = "Chosen by the name that the client asks for; the first where none fits.";
      };
      min_version = key (types.enum [
        "1.2"
        "1.3"
      ]) "The least version of TLS.";
      client_ca_file = key file "Who vouches for clients, which then need a certificate; a PEM file.";
    }) "TLS; without it plain HTTP.";
    http2 = key types.bool "Whether HTTP/2 is offered.";
  });
in
section {
  listen = mkOption {
    type = types.either listener (types.nonEmptyListOf listener);
    default = ":80";
    example = [ "127.0.0.1:8080" ];
    description = "An address to listen on, `{ address; tls; http2; }`, or a list of them.";
  };

  routes = mkOption {
    type = types.listOf (section {
      path = mkOption {
        type = path;
        example = "/api/";
        description = "Path prefix of this route's requests; the longest that matches wins.";
      };
      target = mkOption {
        type = types.nullOr target;
        default = null;
        example = "http://127.0.0.1:9000/base";
        description = "Where requests are forwarded to; a route has this, {option}`redirect` or {option}`respond`.";
      };
      redirect = key (section {
        to = key types.str ''Where clients are sent: "https://{host}"; the rest of path and query is appended.'';
        status = key (types.enum [
          301
          302
          303
          307
          308
        ]) "The status of the redirect.";
      }) "Answer with a redirect, without a target.";
      respond = key (section {
        status = key (types.ints.between 200 599) "The status.";
        body = key types.str "The body.";
        content_type = key types.str "Its media type.";
      }) "Answer with a fixed response, without a target.";
      host = key (types.either types.str names) ''Only for this host, or for these: a name, or "*.example.com".'';
      scheme = key (types.enum [
        "http"
        "https"
      ]) "Only for requests that came so.";
      rewrite_location = key types.bool "Whether Location headers that name the target are rewritten to the client's address.";
      strip_prefix = key types.bool "Whether {option}`path` is removed before the target's path is added.";
      preserve_host = key types.bool "Whether the client's Host is sent to the target.";
      response_header_timeout = key seconds "Time for the target to send a response head, for this route.";
      max_body_size = key bytes "Maximum bytes of a request body, 413 above; 0: no limit.";
      request_headers = part "Changes of the headers that are sent to the target." changes;
      response_headers = part "Changes of the headers that are sent to the client." changes;
      tls = part "How an https target is verified." {
        server_name = key types.str "The name to verify, if it is not the target's host.";
        ca_file = key (types.either types.path types.str) "A PEM file of roots to trust instead of the compiled-in ones.";
        insecure_skip_verify = key types.bool "Accept any certificate. For tests only.";
      };
      http2 = key types.bool "Whether an https target is asked in HTTP/2 where it agrees to that.";
      cors = key (types.either (types.enum [ false ]) (
        section cors
      )) "Keys that replace those of the global {option}`cors`; `false`: off for this route.";
    });
    default = [ ];
    description = "The routes, at least one, in any order.";
  };

  cors = part "Which web pages may use the services behind the proxy." cors;

  transport = part "Limits and time-outs towards the targets." {
    dial_timeout = key seconds "Time for a connection to be made; 0: no limit.";
    dial_keep_alive = key (types.either types.number types.str) "TCP keep-alive in seconds; negative: off.";
    max_idle_conns = key whole "Idle connections to all hosts; 0: what memory allows.";
    max_idle_conns_per_host = key (types.either whole (
      types.enum [ "auto" ]
    )) "Idle connections to one host; auto: what memory allows, 0: 2.";
    max_conns_per_host = key whole "Connections to one host; 0: what memory allows.";
    idle_conn_timeout = key seconds "How long an idle connection is kept; 0: for ever.";
    response_header_timeout = key seconds "Time for a target to send a response head; 0: no limit.";
    read_buffer_size = key bytes "Bytes read from a target at a time.";
    write_buffer_size = key bytes "Bytes written to a target at a time.";
  };

  proxy = part "Limits of requests in progress." {
    max_concurrent_requests = key whole "Concurrent requests; 0: what memory allows.";
    max_tunnels = key whole "Concurrent WebSockets; 0: what memory allows.";
    queue_timeout = key seconds "How long a request waits for memory, a place and a connection, in all, before it gets 503.";
  };

  server = part "Limits and time-outs towards clients." {
    header_timeout = key seconds "Time for a request head to be complete.";
    read_timeout = key seconds "Time without a byte of body from the client.";
    write_timeout = key seconds "Time without a byte taken by the client.";
    idle_timeout = key seconds "Time between requests on a kept-alive connection.";
    max_header_bytes = key bytes "Maximum bytes of a request head, 431 above.";
    max_connections = key whole "Concurrent client connections; 0: what memory allows.";
    shutdown_timeout = key seconds "Time for requests in progress to end when the service stops.";
    shutdown_delay = key seconds "How long the health report answers 503 before the service stops listening.";
    unix_socket_mode = key mode "Permissions of the files of `unix:` listeners, octal.";
    trusted_proxies = key names "Networks (CIDR) whose X-Forwarded headers are trusted; empty: those of every client are kept and appended to.";
  };

  limits = part "Memory." {
    memory = key bytes "The memory limit in bytes, or a size such as \"10MiB\"; `auto`: the unit's {option}`services.leanProxy.memoryMax`; 0: no limit.";
  };

  log = part "The log, which goes to the journal." {
    format = key (types.enum [
      "text"
      "json"
    ]) "One event a line, as text or as JSON.";
    level = key (types.enum [
      "debug"
      "info"
      "warn"
      "error"
    ]) "The lowest level that is logged.";
    access = key types.bool "One line for each request.";
  };

  health = part "The health report." {
    path = key path "Its exact path.";
  };

  metrics = part "Prometheus metrics." {
    listen = key (types.either (types.enum [ "" ]) address) "The address of the metrics page; empty: off.";
  };
}
