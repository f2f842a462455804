# The image without Nix: the same as by nix/image.nix; .ci/image.py compares its configuration with nix/image.toml.
#
#   docker build -t lean-proxy --build-arg REVISION="$(git rev-parse HEAD)" .
#
# RUST_IMAGE: a Debian image with Rust 1.91 or later by rustup. On an aarch64 machine it builds the aarch64 image.
ARG RUST_IMAGE=docker.io/library/rust:1-bookworm

FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY .ci/musl.sh .ci/dl_find_object.c .ci/
COPY Cargo.toml Cargo.lock build.rs layout.ld layout_busy.ld ./
COPY bench/traffic.rs bench/
COPY tests/e2e tests/e2e
COPY src src
RUN .ci/musl.sh /out && chmod 555 /out/lean-proxy

FROM scratch
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lean-proxy" \
      org.opencontainers.image.description="Reverse proxy in one static binary that stays inside ten megabytes whatever its clients do" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/lean-proxy /lean-proxy
ENV PORT=80
EXPOSE 80/tcp
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["/lean-proxy", "--health"]
ENTRYPOINT ["/lean-proxy"]
CMD ["/config.yaml"]
