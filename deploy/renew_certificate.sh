#!/bin/sh
# Gives a renewed certificate to the service: a deploy hook of certbot, which sets RENEWED_LINEAGE.
set -eu

new=$(mktemp /etc/multichat/chat.pem.XXXXXX)
trap 'rm -f "$new"' EXIT
cat "$RENEWED_LINEAGE/fullchain.pem" "$RENEWED_LINEAGE/privkey.pem" >"$new"
chown multichat:multichat "$new"
chmod 0400 "$new"
# One step: nobody reads a new certificate with an old key.
mv "$new" /etc/multichat/chat.pem
# Fails, and certbot says so, if the server does not accept it; clients keep the old one then.
systemctl try-reload-or-restart multichat.service
