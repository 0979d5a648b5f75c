# CPU image: docker build -t cmrcnet . && docker run --rm -v "$PWD:/data" -w /data cmrcnet demo --out demo
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
# OpenMP for faiss and scikit-learn; all decoders of slides come in wheels.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
      --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt "$(ls /wheels/*.whl)[ann,fast,platforms,spatialdata]" \
    && rm -rf /wheels /tmp/constraints.txt
RUN useradd --create-home user
USER user
ENV CMRCNET_CACHE=/tmp/cmrcnet-cache
ENTRYPOINT ["cmrcnet"]
CMD ["--help"]
