# docker build -t gristmill .
# docker run -v ./workers.toml:/etc/gristmill/workers.toml -e DATABASE_URL=postgres://… gristmill

FROM rust:1-bookworm AS build
WORKDIR /build
# The dependencies first, against empty sources: they are compiled again only when a manifest changes.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it \
    && touch src/lib.rs tests/it/main.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -r src tests
COPY . .
# Cargo goes by time, and the files copied are older than the empty ones just built.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

# libpdfium as its Python wheel carries it, checked against the checksums that the binary pins too; and a font for the texts
# whose own fonts a PDF does not bring along, nearly always Chinese, Japanese or Korean.
FROM debian:bookworm-slim AS parts
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates fonts-droid-fallback python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /parts
RUN set -eu; \
    pip download --quiet --no-deps --no-cache-dir --only-binary=:all: --dest wheel pypdfium2==5.15.2; \
    case "$(dpkg --print-architecture)" in \
        amd64) sum=dc31aea5b0fb9fefc9b537a65f4113980b2c40798445736a7e6565bc85161e37 ;; \
        arm64) sum=dd46e93c0c3a73f6cea8489baff6d77a5d0759dd53fbbce0aeb49c91830176fc ;; \
        *) echo "no libpdfium is pinned for $(dpkg --print-architecture)" >&2; exit 1 ;; \
    esac; \
    echo "$sum  $(ls wheel/*.whl)" | sha256sum --check --quiet; \
    python3 -m zipfile -e wheel/*.whl unpacked; \
    mkdir -p cache licences/libpdfium licences/fonts-droid-fallback; \
    cp -r unpacked/*.dist-info/licenses/. licences/libpdfium/; \
    cp /usr/share/doc/fonts-droid-fallback/copyright licences/fonts-droid-fallback/; \
    install -m 644 unpacked/pypdfium2_raw/libpdfium.so libpdfium.so

# What the worker downloads when it first needs it, the local model above all, it keeps in /var/cache/gristmill. For hosts
# without internet, uncomment these lines and take /cache from this stage below.
# FROM parts AS fetched
# COPY --from=build /build/target/release/gristmill /usr/local/bin/gristmill
# RUN GRISTMILL_CACHE=/cache gristmill fetch

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=parts /parts/libpdfium.so /usr/local/lib/libpdfium.so
COPY --from=parts /parts/licences /usr/local/share/licences
COPY --from=parts /usr/share/fonts/truetype/droid /usr/share/fonts/truetype/droid
COPY --from=parts --chown=65532:65532 /parts/cache /var/cache/gristmill
# COPY --from=fetched --chown=65532:65532 /cache /var/cache/gristmill
COPY --from=build /build/target/release/gristmill /usr/local/bin/gristmill
# Probes and scrapers come from outside the container.
ENV GRISTMILL_CACHE=/var/cache/gristmill \
    GRISTMILL__PARSER__PDFIUM=/usr/local/lib/libpdfium.so \
    GRISTMILL__WORKER__LISTEN=0.0.0.0:9464
WORKDIR /etc/gristmill
# By number, so that a cluster can tell that it is not root.
USER 65532:65532
EXPOSE 9464
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["/usr/local/bin/gristmill", "health"]
ENTRYPOINT ["/usr/local/bin/gristmill"]
CMD ["run"]
