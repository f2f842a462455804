# The attack clients and the hostile upstream, one static program.
{ pkgs, ... }:

{
  environment.etc."vm/flood".source = pkgs.pkgsStatic.runCommandCC "flood" { } ''
    $CC -std=c11 -O2 -Wall -Wextra -Werror -static -o $out ${./flood.c}
  '';
}
