# Image of the MLflow server, with clients of PostgreSQL and S3: docker build -f infra/images/mlflow.Dockerfile -t mimic3d-mlflow .
FROM python:3.11-slim-bookworm
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt boto3 "mlflow[auth]" psycopg2-binary \
    && useradd --create-home --uid 1000 mlflow
COPY infra/images/basic_auth.ini /etc/mlflow/basic_auth.ini
COPY --chmod=755 infra/images/secrets-from-files.sh /usr/local/bin/secrets-from-files
ENV MLFLOW_AUTH_CONFIG_PATH=/etc/mlflow/basic_auth.ini \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/mlflow
EXPOSE 5000
ENTRYPOINT ["secrets-from-files"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--app-name", "basic-auth", \
     "--serve-artifacts", "--artifacts-destination", "s3://mimic3d-artifacts/mlflow", "--workers", "2"]
