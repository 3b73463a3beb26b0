# One image for every program; the command names the program: `python -m services registry`, `python -m gateway`.
ARG PYTHON=python:3.11-slim
FROM ${PYTHON}

WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY octavo octavo
RUN python3 -m pip install --no-cache-dir --constraint constraints.txt '.[all]'
COPY services services
COPY gateway gateway

# Nobody's user, nothing writable but the data directory and /tmp.
RUN mkdir /data && chown 10001:10001 /data
USER 10001:10001
ENV OCTAVO_DATA_DIR=/data PYTHONDONTWRITEBYTECODE=1
VOLUME /data
ENTRYPOINT ["python3", "-m"]
CMD ["services"]
