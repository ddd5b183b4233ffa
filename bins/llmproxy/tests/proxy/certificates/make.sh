#!/bin/sh
# Makes the certificates that the tests use: two for the server and one for a client, all of one authority, and one of
# another authority for a client that is not to be let in. They are good from 2020 to 2120, and for nothing but tests.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
cat >"$work/ca.cnf" <<END
[ca]
default_ca = any
[any]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = policy
unique_subject = no
[policy]
commonName = supplied
END
: >"$work/index"

# make NAME AUTHORITY EXTENSIONS
make() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$work/csr"
  printf "$3" >"$work/ext"
  if [ "$1" = "$2" ]; then by="-selfsign -keyfile $1.key"; else by="-keyfile $2.key -cert $2.pem"; fi
  # shellcheck disable=SC2086
  openssl ca -batch -notext -config "$work/ca.cnf" $by -in "$work/csr" -extfile "$work/ext" -out "$1.pem" \
    -startdate 20200101000000Z -enddate 21200101000000Z
}
authority() { make "$1" "$1" 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n'; }
signed() {
  make "$1" "$2" "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=$3\n"
}
authority ca
authority other-ca
signed server ca serverAuth
signed renewed ca serverAuth
signed client ca clientAuth
signed stranger other-ca clientAuth
rm -r "$work" ca.key other-ca.key other-ca.pem
