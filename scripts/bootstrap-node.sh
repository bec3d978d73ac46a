#!/usr/bin/env bash
# Makes a Debian, Ubuntu or WSL2 machine into a node: user, folders, configuration, binaries, service. Run it as often as
# you like: what is in order is left alone, what an operator changed is never overwritten (the new version is put beside
# it as FILE.new), and every step is checked after it was done.
#
#   sudo scripts/bootstrap-node.sh                       # binaries from target/release
#   sudo scripts/bootstrap-node.sh --bin DIR --root /srv/line
#   scripts/bootstrap-node.sh --dry-run                  # say what would be done
#   scripts/bootstrap-node.sh --prefix DIR               # everything below DIR, as the present user, no service started
#
# Exit code: 0 done, 1 a step failed, 2 wrong usage, 3 the machine will not do (the message says why), else that of
# `foreman doctor` when it found an error.
# Functions that `step` calls look unreachable to shellcheck.
# shellcheck disable=SC2317
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin_from=$here/target/release
root=/var/lib/factoryline
user=factory
prefix=
dry_run=false
changes=0
upgraded=false
ending=0

usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

while [ $# -gt 0 ]; do
  case $1 in
    --bin) bin_from=${2:?--bin needs a folder}; shift 2 ;;
    --root) root=${2:?--root needs a folder}; shift 2 ;;
    --user) user=${2:?--user needs a name}; shift 2 ;;
    --prefix) prefix=${2:?--prefix needs a folder}; shift 2 ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) echo "bootstrap-node: unknown word $1" >&2; usage >&2; exit 2 ;;
  esac
done
case $root in
  /*) ;;
  *) echo "bootstrap-node: --root must be an absolute path" >&2; exit 2 ;;
esac
[ -z "$prefix" ] || prefix=$(realpath -m "$prefix")

# Where things lie on this machine; below the prefix if there is one.
line_root=$prefix$root
bin_dir=$prefix/usr/local/bin
unit_dir=$prefix/etc/systemd/system
rotate_dir=$prefix/etc/logrotate.d

say() { printf '%s\n' "$*"; }
refuse() { printf 'bootstrap-node: %s\n' "$1" >&2; printf '  %s\n' "${@:2}" >&2; exit 3; }

# Does a step, or says it. The words before the command are for people.
step() {
  local what=$1
  shift
  changes=$((changes + 1))
  if $dry_run; then
    say "would: $what"
  else
    say "$what"
    "$@" || { printf 'bootstrap-node: this failed: %s\n' "$*" >&2; exit 1; }
  fi
}

# The machine ------------------------------------------------------------------------------------------------------

is_wsl() { grep -qi microsoft /proc/sys/kernel/osrelease 2>/dev/null; }
has_systemd() { [ -z "$prefix" ] && [ -d /run/systemd/system ]; }

# The kind of filesystem under a path, or under the nearest folder above it that exists.
filesystem_of() {
  local path=$1
  while [ ! -e "$path" ]; do path=$(dirname "$path"); done
  stat -f -c %T "$path"
}

check_filesystem() {
  local what=$1 path=$2 kind
  kind=$(filesystem_of "$path")
  case $kind in
    v9fs | 9p | drvfs | *wslfs*)
      refuse "$what ($path) would lie on $kind: a Windows drive seen from WSL2, where reads can hang for ever" \
        "choose a folder of the Linux disk: --root /var/lib/factoryline" \
        "a model on C: is copied first: cp -r /mnt/c/models/NAME /var/lib/factoryline/models/" ;;
    smb2 | cifs | smb) refuse "$what ($path) would lie on $kind, which keeps neither renames nor locks" \
      "choose a local disk: --root DIR" ;;
    nfs | fuseblk) say "note: $what lies on $kind: slower, and changes are seen late" ;;
  esac
}

# Models that an existing configuration names lie somewhere as well.
check_sources() {
  local path
  [ -f "$line_root/factory_node.toml" ] || return 0
  sed -n '/^\[sources\]/,/^\[/{s/^[^#=]*=[[:space:]]*"\(\/[^"]*\)".*/\1/p}' "$line_root/factory_node.toml" |
    while read -r path; do [ ! -e "$path" ] || check_filesystem "the model" "$path"; done
}

check_machine() {
  if [ -r /etc/os-release ]; then
    # shellcheck source=/dev/null
    case $(. /etc/os-release && printf '%s %s' "${ID:-}" "${ID_LIKE:-}") in
      *debian* | *ubuntu*) ;;
      *) say "note: this is neither Debian nor Ubuntu; the steps are the same, the names of packages may differ" ;;
    esac
  fi
  if is_wsl; then say "note: this is WSL2"; fi
  if [ -z "$prefix" ] && [ "$(id -u)" != 0 ] && ! $dry_run; then
    refuse "this must run as root" "sudo $0, or --prefix DIR to try it out, or --dry-run"
  fi
  local binary
  for binary in foreman factoryd; do
    [ -x "$bin_from/$binary" ] ||
      refuse "$bin_from/$binary is not there" "cargo build --release, or --bin DIR with both binaries"
  done
  check_filesystem "the line" "$line_root"
  check_sources
}

# Files ------------------------------------------------------------------------------------------------------------

folder() {
  local path=$1 mode=$2
  if [ ! -d "$path" ]; then
    step "make the folder $path" mkdir -p "$path"
    $dry_run || chmod "$mode" "$path"
  fi
  $dry_run || [ -d "$path" ] || { say "$path is not there after it was made" >&2; exit 1; }
}

# A file from standard input. One that differs is the operator's: the new one is put beside it.
config() {
  local path=$1 text
  text=$(cat; printf .)
  text=${text%.}
  if [ ! -e "$path" ]; then
    step "write $path" write "$path" "$text"
  elif [ "$(cat "$path"; printf .)" = "$text." ]; then
    :
  elif [ -e "$path.new" ] && [ "$(cat "$path.new"; printf .)" = "$text." ]; then
    say "kept: $path differs from what comes with this version ($path.new)"
  else
    step "keep $path, which was changed, and write $path.new" write "$path.new" "$text"
  fi
}

# Whole or not at all.
write() {
  local path=$1 text=$2
  printf '%s' "$text" > "$path.$$.tmp" && chmod 0644 "$path.$$.tmp" && mv "$path.$$.tmp" "$path"
}

# A running daemon keeps the old file: it is replaced by rename, not written over.
binary() {
  local from=$bin_from/$1 to=$bin_dir/$1
  if ! cmp -s "$from" "$to"; then
    step "install $to" replace "$from" "$to"
    upgraded=true
  fi
  $dry_run || cmp -s "$from" "$to" || { say "$to is not what was installed" >&2; exit 1; }
}

replace() { install -m 0755 "$1" "$2.$$.tmp" && mv "$2.$$.tmp" "$2"; }

# Steps ------------------------------------------------------------------------------------------------------------

make_user() {
  [ -z "$prefix" ] || return 0
  id "$user" > /dev/null 2>&1 ||
    step "make the user $user" useradd --system --home-dir "$root" --shell /usr/sbin/nologin "$user"
  # GPUs are files of these groups on Debian and Ubuntu.
  local group
  for group in video render; do
    if getent group "$group" > /dev/null && ! id -nG "$user" 2> /dev/null | tr ' ' '\n' | grep -qx "$group"; then
      step "add $user to the group $group" usermod -aG "$group" "$user"
    fi
  done
}

# A command as the user of the daemon.
as_user() { if [ -z "$prefix" ]; then runuser -u "$user" -- "$@"; else "$@"; fi; }

make_line() {
  folder "$line_root" 0750
  if [ -z "$prefix" ] && [ "$(stat -c %U "$line_root" 2> /dev/null || printf '%s' "$user")" != "$user" ]; then
    step "give $line_root to $user" chown "$user:$user" "$line_root"
  fi
  local wanted
  wanted=$("$bin_from/foreman" init --dry-run --root "$line_root" 2> /dev/null | grep -v factory_node.toml || true)
  if [ -n "$wanted" ]; then
    step "make the stations of the line in $line_root" init_line
  fi
  # `init` wrote one if there was none; here a changed one is kept and the new version put beside it.
  config "$line_root/factory_node.toml" < "$here/factory_node.toml.example"
}

init_line() { as_user "$bin_dir/foreman" init --root "$line_root" > /dev/null 2>&1; }

make_service() {
  if [ -n "$prefix" ] || has_systemd; then
    folder "$unit_dir" 0755
    sed -e "s|/var/lib/factoryline|$root|g" -e "s|^\(User\|Group\)=.*|\1=$user|" "$here/systemd/factoryd.service" |
      config "$unit_dir/factoryd.service"
  fi
  if has_systemd; then
    if [ "$(systemctl show -p NeedDaemonReload --value factoryd 2> /dev/null)" = yes ]; then
      step "read the service files anew" systemctl daemon-reload
    fi
    systemctl is-enabled --quiet factoryd 2> /dev/null || step "enable the service" systemctl enable factoryd
    if ! systemctl is-active --quiet factoryd 2> /dev/null; then
      step "start the service" systemctl start factoryd
      $dry_run || systemctl is-active --quiet factoryd || { say "factoryd does not run: journalctl -u factoryd" >&2; exit 1; }
    elif $upgraded; then
      # Not done here: it gives back a part that may be hours old.
      say "the service still runs the version before: systemctl restart factoryd, when it suits"
    fi
    return
  fi
  # Without systemd the daemon reports into a file.
  folder "$rotate_dir" 0755
  config "$rotate_dir/factoryd" << ROTATE
# The daemon rotates its log by size and opens a new one when this moved it away.
$root/factoryd.log {
    weekly
    rotate 8
    compress
    delaycompress
    missingok
    notifempty
    nocreate
}
ROTATE
  say "no systemd here: start the daemon as $user, in a terminal or from cron (@reboot):"
  say "  $bin_dir/factoryd --root $line_root --log $line_root/factoryd.log"
  if is_wsl; then say "  (or turn systemd on: [boot] systemd=true in /etc/wsl.conf, then wsl --shutdown)"; fi
}

examine() {
  if $dry_run; then
    say "would: examine the line with foreman doctor"
    return
  fi
  say "examining the line:"
  local code=0
  as_user "$bin_dir/foreman" doctor --quiet --root "$line_root" || code=$?
  # 10: warnings, which are for a person to weigh.
  if [ "$code" != 0 ] && [ "$code" != 10 ]; then ending=$code; fi
}

check_machine
make_user
folder "$bin_dir" 0755
binary foreman
binary factoryd
make_line
make_service
examine
if $dry_run; then
  say "nothing was changed (--dry-run): $changes steps"
elif [ "$changes" = 0 ]; then
  say "everything was in order: nothing was changed"
else
  say "done: $changes steps; next: $bin_dir/foreman status --root $line_root"
fi
exit "$ending"
