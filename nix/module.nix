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

  # Where it listens, as far as it can be known here.
  addresses = lib.toList cfg.settings.listen;
  isUnix = lib.hasPrefix "unix:";
  isHandedOver = lib.hasPrefix "fd:";
  portOf = address: lib.toInt (lib.last (lib.splitString ":" address));
  ports = map portOf (lib.filter (a: !isUnix a && !isHandedOver a) addresses);
  metricsPorts = map portOf (lib.filter (a: a != null && a != "") [ cfg.settings.metrics.listen ]);
  # A config file of the user's own is not read here; its `listen` is ":80" unless it says otherwise.
  bindsLowPort =
    lib.any (port: port < 1024) (lib.optionals (!cfg.socketActivation) ports ++ metricsPorts)
    || cfg.configFile != null;

  # systemd's own way to write them: ":80" is a port alone, "unix:/x" a path alone. It hands them
  # over in this order, as descriptors from 3 on.
  socketOf = address: lib.removePrefix "unix:" (lib.removePrefix ":" address);
  handedOver = lib.imap0 (index: _: "fd:${toString (3 + index)}") addresses;

  withoutNulls =
    value:
    if lib.isAttrs value then
      lib.mapAttrs (_: withoutNulls) (lib.filterAttrs (_: v: v != null) value)
    else if lib.isList value then
      map withoutNulls value
    else
      value;
  settings = withoutNulls (
    cfg.settings // lib.optionalAttrs cfg.socketActivation { listen = handedOver; }
  );
  written = yaml.generate "lean-proxy.yaml" settings;

  # The program itself says whether it can serve this: a mistake ends the build, not the service.
  runsHere = pkgs.stdenv.buildPlatform.canExecute (cfg.package.stdenv or pkgs.stdenv).hostPlatform;
  variables = lib.mapAttrsToList (name: value: "${name}=${value}") cfg.environment;
  checked = pkgs.runCommand "lean-proxy.yaml" { } ''
    env ${lib.escapeShellArgs variables} ${lib.getExe cfg.package} --check ${written}
    cp ${written} $out
  '';
  fromSettings = if cfg.checkConfig && runsHere then checked else written;

  configPath =
    if cfg.configFile == null then "/etc/lean-proxy/config.yaml" else toString cfg.configFile;
in
{
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
        The configuration, key by key as in the YAML file that the README describes.
        It is checked while the system is built.
        A changed configuration is taken over without a restart: connections live on.
        Secrets do not belong here, for the store is readable by all: write `''${NAME}` and give
        {option}`services.leanProxy.environmentFile`.
      '';
    };

    configFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/var/lib/secrets/lean-proxy.yaml";
      description = ''
        A configuration file to use instead of {option}`services.leanProxy.settings`.
        It is neither checked nor copied to the store; the service's user, who has no name, must be able to read it.
        `systemctl reload lean-proxy` takes over a changed file.
      '';
    };

    checkConfig = mkOption {
      type = types.bool;
      default = cfg.environmentFile == null;
      defaultText = lib.literalExpression "config.services.leanProxy.environmentFile == null";
      description = ''
        Whether {option}`services.leanProxy.settings` are checked while the system is built.
        They cannot be where they name what only the running machine has: a variable of
        {option}`services.leanProxy.environmentFile`, or a file.
      '';
    };

    environment = mkOption {
      type = types.attrsOf types.str;
      default = { };
      example = {
        LOG_FORMAT = "json";
        LEAN_PROXY_THREADS = "2";
      };
      description = "Environment of the service, also for `\${NAME}` in the settings.";
    };

    environmentFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/lean-proxy.env";
      description = "A file of `NAME=value` lines, readable by root alone if you like, for secrets in the settings.";
    };

    memoryMax = mkOption {
      type = types.nullOr (types.strMatching "[0-9]+[KMGT]?");
      default = "10M";
      example = "32M";
      description = ''
        The memory that the service may use, kernel memory and socket buffers included.
        It stays inside by taking no more clients at a time than fit. `null`: no limit.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the ports of {option}`services.leanProxy.settings.listen` are opened in the firewall.";
    };

    socketActivation = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether systemd listens on {option}`services.leanProxy.settings.listen` and hands the sockets over.
        The service then needs no capability for a port below 1024, and a restart refuses nobody: who comes
        meanwhile waits. A changed `listen` restarts the socket.
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
        assertion = lib.any isUnix addresses -> cfg.socketActivation;
        message = "services.leanProxy.settings.listen: the service cannot write to the file system, so a unix socket needs services.leanProxy.socketActivation.";
      }
    ];

    environment.etc = lib.mkIf (cfg.configFile == null) {
      "lean-proxy/config.yaml".source = fromSettings;
    };

    networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall ports;

    systemd.sockets.lean-proxy = lib.mkIf cfg.socketActivation {
      description = "lean-proxy's listening sockets";
      wantedBy = [ "sockets.target" ];
      listenStreams = map socketOf addresses;
      # systemd makes the files then
      socketConfig = lib.optionalAttrs (cfg.settings.server.unix_socket_mode != null) {
        SocketMode = cfg.settings.server.unix_socket_mode;
      };
    };

    systemd.services.lean-proxy = {
      description = "lean-proxy, an HTTP reverse proxy";
      wantedBy = [ "multi-user.target" ];
      # Names are looked up at each request's dial, so the network need not be up yet. An address
      # to bind may be late: then it is tried again, without an end.
      after = [ "network.target" ];
      requires = lib.mkIf cfg.socketActivation [ "lean-proxy.socket" ];
      startLimitIntervalSec = 0;
      inherit (cfg) environment;
      reloadTriggers = lib.optional (cfg.configFile == null) fromSettings;
      serviceConfig =
        unit.service
        // (if bindsLowPort then unit.low_port else unit.no_low_port)
        // {
          ExecStart = "${lib.getExe cfg.package} ${utils.escapeSystemdExecArg configPath}";
        }
        // lib.optionalAttrs (cfg.memoryMax != null) { MemoryMax = cfg.memoryMax; }
        // lib.optionalAttrs (cfg.environmentFile != null) {
          EnvironmentFile = toString cfg.environmentFile;
        };
    };
  };
}
