# services.leanProxy: the proxy as a hardened systemd service.
{ self }:
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:

let
  inherit (lib) mkOption types;
  cfg = config.services.leanProxy;
  yaml = pkgs.formats.yaml { };
  unit = lib.importTOML ./service.toml;

  # Replaces `${NAME}` and `${NAME:-default}` by the values of `environment`; null where one is missing.
  variable =
    piece:
    let
      value = cfg.environment.${lib.head piece} or null;
      default = lib.elemAt piece 2;
    in
    if value == null || (value == "" && default != null) then default else value;
  resolve =
    text:
    let
      pieces = map (piece: if lib.isString piece then piece else variable piece) (
        builtins.split "[$][{]([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?}" text
      );
    in
    if lib.elem null pieces then null else lib.concatStrings pieces;

  # The addresses to listen on, as far as they are known at evaluation.
  isUnix = lib.hasPrefix "unix:";
  isHandedOver = lib.hasPrefix "fd:";
  isTcp = address: !isUnix address && !isHandedOver address;
  isLoopback = address: builtins.match "(127[.].*|localhost|\\[::1]):[0-9]+" address != null;
  portOf = address: lib.toIntBase10 (lib.last (lib.splitString ":" address));
  listeners = lib.toList cfg.settings.listen;
  addressOf = listener: if lib.isAttrs listener then listener.address else listener;
  written = map addressOf listeners;
  hasTls = lib.any (listener: lib.isAttrs listener && listener.tls or null != null) listeners;
  addresses = lib.remove null (map resolve written);
  metrics = if cfg.settings.metrics.listen == null then "" else cfg.settings.metrics.listen;
  metricsAddresses = lib.filter (a: a != null && a != "") [ (resolve metrics) ];
  isKnown = lib.all (a: resolve a != null) (written ++ [ metrics ]);

  # The addresses that the program itself binds.
  bound = lib.optionals (!cfg.socketActivation) addresses ++ metricsAddresses;
  # An unknown address may have a low port: the default of `listen` in a configuration file is ":80".
  bindsLowPort = cfg.configFile != null || !isKnown || lib.any (a: isTcp a && portOf a < 1024) bound;
  # The only folder where the service can make files.
  inRuntimeDirectory = lib.hasPrefix "unix:/run/lean-proxy/";

  # A socket unit for each address, with address and mode in its name: a changed address is another unit, so that a switch
  # to a new system stops the old socket, starts the new one and does not touch the others. (A switch ignores changes
  # inside a socket unit.) The program finds its sockets by these names.
  mode = cfg.settings.server.unix_socket_mode;
  socketName =
    address:
    "lean-proxy-"
    + lib.replaceStrings [ ":" "/" "[" "]" "%" "@" ] [ "-" "-" "" "" "-" "-" ] (
      lib.removePrefix ":" address
    )
    + lib.optionalString (isUnix address && mode != null) "-${mode}";
  socketOf = address: {
    description = "lean-proxy's socket at ${address}";
    wantedBy = [ "sockets.target" ];
    # in systemd's notation: a port for ":80", a path for "unix:/x"
    listenStreams = [ (lib.removePrefix "unix:" (lib.removePrefix ":" address)) ];
    socketConfig = {
      Service = "lean-proxy.service";
      FileDescriptorName = socketName address;
    }
    // lib.optionalAttrs (isUnix address && mode != null) { SocketMode = mode; };
  };
  socketNames = map socketName addresses;

  withoutNulls =
    value:
    if lib.isAttrs value then
      lib.mapAttrs (_: withoutNulls) (lib.filterAttrs (_: v: v != null) value)
    else if lib.isList value then
      map withoutNulls value
    else
      value;
  settings = withoutNulls (
    cfg.settings
    // lib.optionalAttrs cfg.socketActivation {
      listen = lib.zipListsWith (
        listener: name:
        if lib.isAttrs listener then listener // { address = "fd:${name}"; } else "fd:${name}"
      ) listeners socketNames;
    }
  );
  generated = yaml.generate "lean-proxy.yaml" settings;

  # The program checks its configuration at build time, so that a mistake fails the build and not the service.
  runsHere = pkgs.stdenv.buildPlatform.canExecute (cfg.package.stdenv or pkgs.stdenv).hostPlatform;
  variables = lib.mapAttrsToList (name: value: "${name}=${value}") cfg.environment;
  checked = pkgs.runCommand "lean-proxy.yaml" { } ''
    env ${lib.escapeShellArgs variables} ${lib.getExe cfg.package} --check ${generated}
    cp ${generated} $out
  '';
  fromSettings = if cfg.checkConfig && runsHere then checked else generated;

  configPath =
    if cfg.configFile == null then "/etc/lean-proxy/config.yaml" else toString cfg.configFile;
in
{
  # Makes two imports one module.
  key = "lean-proxy#nixosModules.default";

  options.services.leanProxy = {
    enable = lib.mkEnableOption "lean-proxy, an HTTP reverse proxy in a few megabytes";

    package = mkOption {
      type = types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.lean-proxy;
      defaultText = lib.literalExpression "lean-proxy.packages.\${system}.lean-proxy";
      description = "The lean-proxy to run.";
    };

    settings = mkOption {
      type = import ./settings.nix { inherit lib yaml; };
      default = { };
      example = lib.literalExpression ''
        {
          listen = ":8080";
          routes = [
            {
              path = "/api/";
              target = "http://127.0.0.1:9000";
            }
          ];
          cors.allowed_origins = [ "https://app.example.com" ];
        }
      '';
      description = ''
        The configuration, with the keys of the YAML file that docs/configuration.md describes.
        It is checked while the system is built.
        A changed configuration is applied without a restart, and connections stay open.
        Do not put secrets here, because every user can read the store: write `''${NAME}` and set
        {option}`services.leanProxy.environmentFile`.
      '';
    };

    configFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/var/lib/secrets/lean-proxy.yaml";
      description = ''
        A configuration file to use instead of {option}`services.leanProxy.settings`.
        It is neither checked nor copied to the store. The service's dynamic user must be able to read it.
        `systemctl reload lean-proxy` applies a changed file.
      '';
    };

    checkConfig = mkOption {
      type = types.bool;
      default = cfg.environmentFile == null && !hasTls;
      defaultText = lib.literalExpression "no environmentFile, and no listener with tls";
      description = ''
        Whether {option}`services.leanProxy.settings` are checked while the system is built.
        Set it to false if they refer to what exists only on the running machine: a variable of
        {option}`services.leanProxy.environmentFile`, or a file such as a listener's certificate.
      '';
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        LOG_FORMAT = "json";
        LEAN_PROXY_THREADS = "2";
      };
      description = "Environment variables of the service, also for `\${NAME}` in the settings.";
    };

    environmentFile = mkOption {
      type = types.nullOr types.externalPath;
      default = null;
      example = "/run/secrets/lean-proxy.env";
      description = "A file of `NAME=value` lines for secrets in the settings. It may be readable by root only.";
    };

    credentials = mkOption {
      type = types.attrsOf types.externalPath;
      default = { };
      example = {
        "tls.crt" = "/var/lib/acme/example.com/fullchain.pem";
        "tls.key" = "/var/lib/acme/example.com/key.pem";
      };
      description = ''
        Files that root alone can read, for the service: each is at `/run/credentials/lean-proxy.service/NAME`, for
        `cert_file`, `key_file` and `client_ca_file` of a listener. systemd copies them when the service starts; it
        has to be restarted to see a renewed one, which loses no connection with
        {option}`services.leanProxy.socketActivation`.
      '';
    };

    memoryMax = mkOption {
      type = types.nullOr (types.strMatching "[0-9]+[KMGT]?");
      default = "10M";
      example = "32M";
      description = ''
        The memory that the service may use, kernel memory and socket buffers included.
        It stays below by serving no more clients at the same time than fit. `null`: no limit.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to open the ports of {option}`services.leanProxy.settings.listen` in the firewall, except those of
        loopback addresses.
      '';
    };

    socketActivation = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether systemd listens on {option}`services.leanProxy.settings.listen` and passes the sockets to the service.
        The service then needs no capability for a port below 1024, and no connection is refused while it restarts,
        for example for an upgrade: new connections wait. Each address has its own socket unit, so that an address can
        be added or removed without touching the others.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = (cfg.settings.routes == [ ]) != (cfg.configFile == null);
        message = "services.leanProxy: give either services.leanProxy.settings.routes (at least one) or services.leanProxy.configFile.";
      }
      {
        assertion = cfg.openFirewall -> cfg.configFile == null;
        message = "services.leanProxy.openFirewall reads services.leanProxy.settings.listen and cannot see into services.leanProxy.configFile: set networking.firewall.allowedTCPPorts yourself.";
      }
      {
        assertion = cfg.socketActivation -> cfg.configFile == null;
        message = "services.leanProxy.socketActivation needs services.leanProxy.settings, not services.leanProxy.configFile.";
      }
      {
        assertion = cfg.socketActivation -> !lib.any isHandedOver addresses;
        message = "services.leanProxy.socketActivation makes the sockets itself: services.leanProxy.settings.listen must not name one by \"fd:\".";
      }
      {
        assertion = lib.all inRuntimeDirectory (lib.filter isUnix bound);
        message = "services.leanProxy.settings: the service makes unix sockets below /run/lean-proxy/ only; for another place in services.leanProxy.settings.listen use services.leanProxy.socketActivation.";
      }
      {
        assertion = (cfg.socketActivation || cfg.openFirewall) -> lib.all (a: resolve a != null) written;
        message = "services.leanProxy.settings.listen names a variable that services.leanProxy.environment does not have: services.leanProxy.openFirewall and services.leanProxy.socketActivation need the address while the system is built.";
      }
      {
        assertion = cfg.socketActivation -> lib.allUnique socketNames;
        message = "services.leanProxy.settings.listen: two addresses have the same socket unit: ${toString socketNames}.";
      }
    ];

    environment.etc = lib.mkIf (cfg.configFile == null) {
      "lean-proxy/config.yaml".source = fromSettings;
    };

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall (
      map portOf (lib.filter (a: isTcp a && !isLoopback a) addresses)
    );

    systemd.sockets = lib.mkIf cfg.socketActivation (
      lib.listToAttrs (map (a: lib.nameValuePair (socketName a) (socketOf a)) addresses)
    );

    systemd.services.lean-proxy = {
      description = "lean-proxy, an HTTP reverse proxy";
      wantedBy = [ "multi-user.target" ];
      # Names are resolved when a request dials, so the network need not be up yet. If an address to bind does not exist
      # yet, the service is started again, without a limit.
      after = [ "network.target" ];
      startLimitIntervalSec = 0;
      # Restart a changed service after a switch. By default it would be stopped before and started after it, and would
      # serve no requests in between, and its sockets would be closed.
      stopIfChanged = false;
      inherit (cfg) environment;
      reloadTriggers = lib.optional (cfg.configFile == null) fromSettings;
      serviceConfig =
        unit.service
        // (if bindsLowPort then unit.low_port else unit.no_low_port)
        // {
          ExecStart = "${lib.getExe cfg.package} ${utils.escapeSystemdExecArg configPath}";
        }
        // lib.optionalAttrs cfg.socketActivation {
          Sockets = map (name: "${name}.socket") socketNames;
        }
        // lib.optionalAttrs (lib.any inRuntimeDirectory bound) { RuntimeDirectory = "lean-proxy"; }
        // lib.optionalAttrs (cfg.memoryMax != null) { MemoryMax = cfg.memoryMax; }
        // lib.optionalAttrs (cfg.credentials != { }) {
          LoadCredential = lib.mapAttrsToList (name: file: "${name}:${toString file}") cfg.credentials;
        }
        // lib.optionalAttrs (cfg.environmentFile != null) {
          EnvironmentFile = toString cfg.environmentFile;
        };
    };
  };
}
