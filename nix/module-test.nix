# Evaluates the module for many sets of options, without building a system. Each case is a set of options and the expected
# result; `refused` lists the assertions that fail.
{ self, pkgs }:

let
  inherit (self.inputs.nixpkgs) lib;
  inherit (lib) mkOption types;

  # The options of NixOS that the module sets.
  anything = mkOption {
    type = types.attrsOf types.anything;
    default = { };
  };
  nixos = {
    options = {
      assertions = mkOption { type = types.listOf types.raw; };
      networking.firewall.allowedTCPPorts = mkOption {
        type = types.listOf types.port;
        default = [ ];
      };
      environment.etc = anything;
      systemd.services = anything;
      systemd.sockets = anything;
    };
    config._module.args = {
      inherit pkgs;
      utils.escapeSystemdExecArg = lib.id;
    };
  };

  # Imported twice, as on a machine that gets the module in two ways.
  imports = map (lib.modules.importApply ./module.nix) [
    { inherit self; }
    { inherit self; }
  ];
  routes = [
    {
      path = "/";
      target = "http://127.0.0.1:9000";
    }
  ];

  config =
    options:
    (lib.evalModules {
      modules = imports ++ [
        nixos
        { services.leanProxy.enable = true; }
        { services.leanProxy = options; }
      ];
    }).config;

  proxy = settings: {
    settings = {
      inherit routes;
    }
    // settings;
  };
  refused = options: map (a: a.message) (lib.filter (a: !a.assertion) (config options).assertions);
  # Whether the options are accepted at all: types are checked only where a value is used.
  isAccepted =
    options:
    let
      c = config options;
      used = [
        c.services.leanProxy.settings.listen
        c.services.leanProxy.settings.metrics.listen
        c.services.leanProxy.configFile
        c.services.leanProxy.environmentFile
        (refused options)
      ];
    in
    (builtins.tryEval (builtins.deepSeq used (refused options == [ ]))) == {
      success = true;
      value = true;
    };
  firewall =
    options: (config ({ openFirewall = true; } // options)).networking.firewall.allowedTCPPorts;
  service = options: (config options).systemd.services.lean-proxy;
  capability = options: (service options).serviceConfig.CapabilityBoundingSet;
  low = "CAP_NET_BIND_SERVICE";
  secure = {
    address = ":443";
    tls.certificates = [
      {
        cert_file = "/run/credentials/lean-proxy.service/tls.crt";
        key_file = "/run/credentials/lean-proxy.service/tls.key";
      }
    ];
  };

  results = {
    port80 = capability (proxy { }) == low;
    highPort =
      capability (proxy {
        listen = ":8080";
      }) == "";
    watchdog = (service (proxy { })).serviceConfig.WatchdogSec > 0;
    upgradeRestarts = !(service (proxy { })).stopIfChanged;

    # addresses with variables, as in the repository's config.yaml
    variableDefault =
      capability (proxy {
        listen = ":\${PORT:-8080}";
      }) == "";
    variableGiven =
      capability (proxy { listen = ":\${PORT:-8080}"; } // { environment.PORT = "80"; }) == low;
    variableInFirewall =
      firewall (proxy { listen = ":\${PORT:-8080}"; } // { environment.PORT = "81"; }) == [ 81 ];
    variableUnknown = isAccepted (proxy {
      listen = ":\${PORT}";
    });
    variableUnknownMayBeLow =
      capability (proxy {
        listen = ":\${PORT}";
      }) == low;
    variableUnknownInFirewall =
      !isAccepted (proxy { listen = ":\${PORT}"; } // { openFirewall = true; });

    loopbackStaysShut =
      firewall (proxy {
        listen = [
          "127.0.0.1:8080"
          "[::1]:8081"
          "localhost:8082"
          "10.0.0.1:8083"
          ":8084"
        ];
      }) == [
        8083
        8084
      ];

    metricsOnUnix = isAccepted (proxy {
      metrics.listen = "unix:/run/lean-proxy/metrics.sock";
    });
    metricsOnUnixHasFolder =
      (service (proxy {
        metrics.listen = "unix:/run/lean-proxy/metrics.sock";
      })).serviceConfig.RuntimeDirectory == "lean-proxy";
    metricsOnUnixElsewhere =
      !isAccepted (proxy {
        metrics.listen = "unix:/run/metrics.sock";
      });
    metricsHandedOver = isAccepted (proxy {
      metrics.listen = "fd:metrics";
    });
    metricsOff = isAccepted (proxy {
      metrics.listen = "";
    });
    metricsLowPort =
      capability (proxy {
        listen = ":8080";
        metrics.listen = ":99";
      }) == low;
    metricsWithoutPort =
      !isAccepted (proxy {
        metrics.listen = "localhost";
      });

    # files that may contain secrets are never copied to the store
    storeConfigFile = !isAccepted { configFile = "${./image.toml}"; };
    storeEnvironmentFile = !isAccepted (proxy { } // { environmentFile = "${./image.toml}"; });
    configFile = isAccepted { configFile = "/var/lib/secrets/x.yaml"; };
    noRoutes = !isAccepted { };
    bothSources = !isAccepted (proxy { } // { configFile = "/x.yaml"; });

    # each address has its own socket unit; another address or mode is another unit
    socketUnits =
      let
        c = config (
          proxy {
            listen = [
              ":80"
              "[::1]:8080"
              "unix:/run/x.sock"
            ];
            server.unix_socket_mode = "0660";
          }
          // {
            socketActivation = true;
          }
        );
        names = [
          "lean-proxy-80"
          "lean-proxy---1-8080"
          "lean-proxy-unix--run-x.sock-0660"
        ];
      in
      lib.attrNames c.systemd.sockets == lib.sort lib.lessThan names
      && c.systemd.services.lean-proxy.serviceConfig.Sockets == map (name: "${name}.socket") names
      && c.systemd.services.lean-proxy.serviceConfig.CapabilityBoundingSet == ""
      && c.systemd.sockets."lean-proxy-unix--run-x.sock-0660".socketConfig.SocketMode == "0660"
      && c.systemd.sockets."lean-proxy-80".listenStreams == [ "80" ];
    sameSocketUnit =
      !isAccepted (
        proxy {
          listen = [
            ":80"
            ":80"
          ];
        }
        // {
          socketActivation = true;
        }
      );
    # listeners with TLS
    tlsPort443 =
      capability (proxy {
        listen = secure;
      }) == low;
    tlsInFirewall =
      firewall (proxy {
        listen = [
          ":80"
          secure
        ];
      }) == [
        80
        443
      ];
    tlsIsNotChecked = !(config (proxy { listen = secure; })).services.leanProxy.checkConfig;
    tlsWithoutKey =
      !isAccepted (proxy {
        listen = {
          address = ":443";
          tls.certificates = [ { cert_file = "/x.pem"; } ];
        };
      });
    credentials =
      (service (
        proxy { listen = secure; }
        // {
          credentials."tls.key" = "/var/lib/acme/x/key.pem";
        }
      )).serviceConfig.LoadCredential == [ "tls.key:/var/lib/acme/x/key.pem" ];
    tlsSocketUnit =
      let
        c = config (proxy { listen = secure; } // { socketActivation = true; });
      in
      lib.attrNames c.systemd.sockets == [ "lean-proxy-443" ]
      && c.systemd.services.lean-proxy.serviceConfig.CapabilityBoundingSet == "";

    unixWithoutActivation =
      !isAccepted (proxy {
        listen = "unix:/run/x.sock";
      });
  };
  failed = lib.attrNames (lib.filterAttrs (_: holds: !holds) results);
in
if failed == [ ] then
  pkgs.runCommand "lean-proxy-module" { cases = lib.attrNames results; } "echo $cases > $out"
else
  throw "nix/module-test.nix: services.leanProxy is not as expected in ${toString failed}"
