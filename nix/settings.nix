# The config file's keys as NixOS options. `null` stands for the program's own default, which is
# written down in one place only: the program. Keys that are not listed here pass as they are,
# and `lean-proxy --check` has the last word on them.
{ lib, yaml }:

let
  inherit (lib) mkOption types;

  # A part of the file: known keys are typed, others are free.
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
  target = types.strMatching "(https?://[^/?# ]+[^?# ]*|unix:/.+)" // {
    description = ''"http://", "https://" or "unix:/" address without query'';
  };
  # Where a part of it comes from the environment, the program has the last word on the rest.
  address =
    types.strMatching "(.*:[0-9]+|unix:/.+|fd:.+|.*[$][{][A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?}.*)"
    // {
      description = ''address (":80", "127.0.0.1:80", "[::1]:80", ":''${PORT:-80}", "unix:/run/x.sock" or "fd:NAME")'';
    };

  cors = {
    allowed_origins = key (types.listOf origin) "Whose pages may read the answers. Empty: CORS is off.";
    allowed_methods = key names ''Methods that a preflight allows; `["*"]`: the one asked for.'';
    allowed_headers = key names ''Request headers that a preflight allows; `["*"]`: those asked for.'';
    exposed_headers = key names "Response headers that a page may read. Empty: what the upstream says.";
    allow_credentials = key (types.either types.bool (
      types.enum [ "auto" ]
    )) "Whether cookies may be sent along; `auto` leaves it to the upstream.";
    max_age = key (types.ints.between (
      -1
    ) 2147483647) "Seconds that a preflight may be remembered; -1: the header is not sent.";
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
      description = "Headers to take away.";
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
    description = "Where clients are awaited: an address, `{ address; tls; }`, or a list of them.";
  };

  routes = mkOption {
    type = types.listOf (section {
      path = mkOption {
        type = path;
        example = "/api/";
        description = "Prefix of the requests that this route takes; the longest that matches wins.";
      };
      target = mkOption {
        type = types.nullOr target;
        default = null;
        example = "http://127.0.0.1:9000/base";
        description = "Where they go, unless {option}`redirect` or {option}`respond` says what they get.";
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
      }) "Send clients elsewhere, without a target.";
      respond = key (section {
        status = key (types.ints.between 200 599) "The status.";
        body = key types.str "The body.";
        content_type = key types.str "Its media type.";
      }) "Answer with this, without a target.";
      host = key (types.either types.str names) ''Only for this host, or for these: a name, or "*.example.com".'';
      rewrite_location = key types.bool "Whether the target's own address in Location becomes the client's.";
      strip_prefix = key types.bool "Whether {option}`path` is taken off before the target's path is put on.";
      preserve_host = key types.bool "Whether the client's Host goes to the target.";
      response_header_timeout = key seconds "This route's own time-out for the answer's head.";
      max_body_size = key bytes "Bytes of a request body, else 413; 0: no limit.";
      request_headers = part "Changes to what the target gets." changes;
      response_headers = part "Changes to what the client gets." changes;
      tls = part "How an https target is verified." {
        server_name = key types.str "The name to verify, where it is not the target's.";
        ca_file = key (types.either types.path types.str) "The roots to trust instead of those compiled in, a PEM file.";
        insecure_skip_verify = key types.bool "Trust anybody. For tests only.";
      };
      cors = key (types.either (types.enum [ false ]) (
        section cors
      )) "Laid over the global {option}`cors`; `false`: off for this route.";
    });
    default = [ ];
    description = "The routes, at least one, in any order.";
  };

  cors = part "Which web pages may use the services behind the proxy." cors;

  transport = part "Limits and time-outs towards the targets." {
    dial_timeout = key seconds "For a connection to be made; 0: none.";
    dial_keep_alive = key (types.either types.number types.str) "TCP keep-alive in seconds; negative: off.";
    max_idle_conns = key whole "Idle connections over all hosts; 0: no limit.";
    max_idle_conns_per_host = key whole "Idle connections to one host.";
    max_conns_per_host = key whole "All connections to one host; 0: no limit.";
    idle_conn_timeout = key seconds "How long an idle connection is kept; 0: for ever.";
    response_header_timeout = key seconds "For the head of an answer to arrive; 0: none.";
    read_buffer_size = key bytes "Bytes read from a target at a time.";
    write_buffer_size = key bytes "Bytes on their way to a target at a time.";
  };

  proxy = part "Places for requests." {
    max_concurrent_requests = key whole "Requests at the same time; 0: what memory allows.";
    queue_timeout = key seconds "How long a request waits for a place before it gets 503.";
  };

  server = part "Limits and time-outs towards clients." {
    header_timeout = key seconds "For a request's head to be complete.";
    read_timeout = key seconds "Without a byte of body from the client.";
    write_timeout = key seconds "Without a byte taken by the client.";
    idle_timeout = key seconds "Between requests on a kept-alive connection.";
    max_header_bytes = key bytes "Bytes of a request's head, else 431.";
    max_connections = key whole "Client connections at the same time; 0: what memory allows.";
    shutdown_timeout = key seconds "What requests in flight get when the service stops.";
    shutdown_delay = key seconds "How long the health report says 503 before the service stops listening.";
    unix_socket_mode = key mode "Permissions of the files of `unix:` listeners, octal.";
    trusted_proxies = key names "Networks (CIDR) whose X-Forwarded headers are believed; empty: everybody's are appended to.";
  };

  limits = part "Memory." {
    memory = key bytes "Bytes to stay inside of, or a size such as \"10MiB\"; `auto`: the unit's {option}`services.leanProxy.memoryMax`; 0: no limit.";
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
    ]) "The least that is logged.";
    access = key types.bool "One line for each request.";
  };

  health = part "The health report." {
    path = key path "Its exact path.";
  };

  metrics = part "Prometheus metrics." {
    listen = key (types.either (types.enum [ "" ]) address) "An address of its own; empty: off.";
  };
}
