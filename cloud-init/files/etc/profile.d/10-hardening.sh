# Files are for their owner and group, unless somebody says otherwise; a forgotten shell ends after a quarter of an hour.
umask 027
ulimit -Hc 0
if [ -n "${BASH_VERSION:-}" ] && [ -z "${TMOUT:-}" ]; then
    declare -xr TMOUT=900
fi
