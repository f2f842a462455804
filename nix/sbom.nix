# The bill of materials, in CycloneDX form: the crates that Cargo.lock resolves from [dependencies], with their checksums
# and dependencies. Crates that are needed only for building or on other systems are included, because the lock file does
# not distinguish them; those of the tests are not. Two contain C: libmimalloc-sys (the allocator mimalloc) and ring
# (cryptography).
{ lib, writeText }:

let
  manifest = lib.importTOML ../Cargo.toml;
  locked = (lib.importTOML ../Cargo.lock).package;

  # "name", or "name version" where the lock file has several
  find =
    dependency:
    let
      words = lib.splitString " " dependency;
      name = lib.head words;
      version = if lib.length words == 1 then null else lib.elemAt words 1;
      fits = crate: crate.name == name && (version == null || crate.version == version);
    in
    lib.findFirst fits (throw "Cargo.lock has no ${dependency}") locked;

  purl = crate: "pkg:cargo/${crate.name}@${lib.escapeURL crate.version}";
  needs = crate: map find (crate.dependencies or [ ]);
  node = crate: {
    key = purl crate;
    inherit crate;
  };

  program = find manifest.package.name;
  isOurs = crate: manifest.dependencies ? ${crate.name};
  direct = lib.filter isOurs (needs program);
  crates = map (found: found.crate) (
    lib.genericClosure {
      startSet = map node direct;
      operator = found: map node (needs found.crate);
    }
  );
in
writeText "${manifest.package.name}-${manifest.package.version}.cdx.json" (
  builtins.toJSON {
    bomFormat = "CycloneDX";
    specVersion = "1.5";
    version = 1;
    metadata.component = {
      type = "application";
      bom-ref = purl program;
      inherit (program) name version;
      licenses = [ { license.id = manifest.package.license; } ];
    };
    components = map (crate: {
      type = "library";
      bom-ref = purl crate;
      purl = purl crate;
      inherit (crate) name version;
      hashes = [
        {
          alg = "SHA-256";
          content = crate.checksum;
        }
      ];
    }) crates;
    dependencies = [
      {
        ref = purl program;
        dependsOn = map purl direct;
      }
    ]
    ++ map (crate: {
      ref = purl crate;
      dependsOn = map purl (needs crate);
    }) crates;
  }
)
