#!/bin/sh
# The bucket, and a user that may use it and nothing else. Whatever is there already stays.
set -eu

mc alias set minio "$ENDPOINT" "$ROOT_USER" "$ROOT_PASSWORD" >/dev/null
mc mb --ignore-existing "minio/$BUCKET"

printf '{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
   "Resource": ["arn:aws:s3:::%s"]},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
   "s3:ListMultipartUploadParts"], "Resource": ["arn:aws:s3:::%s/*"]}]}' "$BUCKET" "$BUCKET" >/tmp/policy.json
mc admin policy create minio "$BUCKET" /tmp/policy.json
mc admin user add minio "$ACCESS_KEY" "$SECRET_KEY"
case $(mc admin user info minio "$ACCESS_KEY" --json) in
*"\"policyName\":\"$BUCKET\""*) ;;
*) mc admin policy attach minio "$BUCKET" --user "$ACCESS_KEY" ;; # it refuses a policy that the user has
esac
