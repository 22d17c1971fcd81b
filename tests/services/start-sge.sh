#!/usr/bin/env bash
# Grid Engine on this machine alone, with libdrmaa and without systemd, for tests; see environment.sh for what its
# clients need.
set -euo pipefail
cd "$(dirname "$0")"
name=sge
. ./sge.sh

here=/usr/lib/gridengine there=/usr/share/gridengine

as_admin() { # as_admin COMMAND... : as the user that the qmaster becomes
    setpriv --reuid=sgeadmin --regid=sgeadmin --clear-groups "$@"
}

make_cell() { # all that the daemons need before they are started
    local directory what
    rm -rf "${base:?}"/{bin,utilbin,lib,util,default,spool}
    mkdir -p "$base"/{bin,utilbin,lib,default/common,spool/qmaster/job_scripts,spool/spooldb,spool/execd}
    mkdir -p -m 1777 "$base/tmp"
    ln -s "$there/util" "$base/util"
    for directory in bin utilbin lib; do
        ln -s "$here" "$base/$directory/$("$there/util/arch")"
    done
    # binary_path: not /usr/sbin, where the shepherd is a script that starts forty processes for a job
    cat >"$base/default/common/bootstrap" <<END
admin_user sgeadmin
default_domain none
ignore_fqdn false
spooling_method berkeleydb
spooling_lib libspoolb
spooling_params $base/spool/spooldb
binary_path $here
qmaster_spool_dir $base/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
END
    echo localhost >"$base/default/common/act_qmaster"
    # Root may run jobs; ends are in the records within a second. What has a group of the range is a job's, and is
    # killed with it: a second Grid Engine on this machine has a range of its own.
    sed -e "s#^execd_spool_dir .*#execd_spool_dir $base/spool/execd#" \
        -e 's#^min_uid .*#min_uid 0#' -e 's#^min_gid .*#min_gid 0#' \
        -e "s#^gid_range .*#gid_range $((65000 + 10 * ports))-$((65500 + 10 * ports))#" \
        -e 's#^mailer .*#mailer /bin/true#' -e 's#^administrator_mail .*#administrator_mail none#' \
        -e 's#^load_report_time .*#load_report_time 00:00:05#' \
        -e "s#^reporting_params .*#reporting_params accounting=true reporting=false flush_time=00:00:01 \
accounting_flush_time=00:00:00 joblog=false sharelog=00:00:00#" \
        -e 's#^execd_params .*#execd_params PTF_MIN_PRIORITY=0,ENABLE_ADDGRP_KILL=TRUE#' \
        -e 's#^qmaster_params .*#qmaster_params MAX_DYN_EC=1000#' \
        "$there/default-configuration" >"$base/default/configuration"
    chown -R sgeadmin:sgeadmin "$base/default" "$base/spool"
    {
        as_admin "$here/spoolinit" berkeleydb libspoolb "$base/spool/spooldb" init
        as_admin "$here/spooldefaults" configuration "$base/default/configuration"
        as_admin "$here/spooldefaults" complexes "$there/util/resources/centry"
        as_admin "$here/spooldefaults" usersets "$there/util/resources/usersets"
        as_admin "$here/spooldefaults" managers sgeadmin
        as_admin "$here/spooldefaults" managers root
    } >"$base/log/cell" 2>&1 || { echo "$name: $(tail -n 1 "$base/log/cell")"; return 1; }
    touch "$base/default/made"
}

add() { # add OPTION : qconf's, with the standard input as the file that it reads
    cat >"$base/log/object"
    qconf "$1" "$base/log/object"
}

add_objects() { # a host, a parallel environment, a queue; and a scheduler that looks at every second
    local limit limits='' no='user_lists NONE
xuser_lists NONE'
    qconf -as localhost || true # it may be there
    qconf -sel | grep -qx localhost || add -Ae <<END
hostname localhost
load_scaling NONE
complex_values NONE
$no
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
END
    printf 'group_name @allhosts\nhostlist localhost\n' | add -Ahgrp
    add -Ap <<END
pe_name smp
slots 999
$no
start_proc_args NONE
stop_proc_args NONE
allocation_rule \$pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
END
    for limit in rt cpu fsize data stack rss vmem; do
        limits+="s_$limit INFINITY"$'\n'"h_$limit INFINITY"$'\n'
    done
    # More slots than processors: jobs in tests sleep more than they compute.
    add -Aq <<END
qname all.q
hostlist @allhosts
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list smp
rerun FALSE
slots 100
tmpdir $base/tmp
shell /bin/bash
prolog NONE
epilog NONE
shell_start_mode unix_behavior
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:60
owner_list NONE
$no
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
s_core 0
h_core 0
$limits
END
    qconf -ssconf | sed -e 's/^schedule_interval .*/schedule_interval 0:0:1/' \
        -e 's/^flush_submit_sec .*/flush_submit_sec 1/' -e 's/^flush_finish_sec .*/flush_finish_sec 1/' \
        -e 's/^job_load_adjustments .*/job_load_adjustments NONE/' \
        -e 's/^load_adjustment_decay_time .*/load_adjustment_decay_time 0:0:0/' \
        -e 's/^max_pending_tasks_per_job .*/max_pending_tasks_per_job 1000/' \
        -e 's/^maxujobs .*/maxujobs 0/' -e 's/^schedd_job_info .*/schedd_job_info true/' | add -Msconf
}

takes_jobs() { # whether the queue is in no state that keeps jobs out
    timeout 10 qstat -f | awk '/^all\.q@/ { found = NF == 5 && $4 != "-NA-" } END { exit !found }'
}

may
need "$here/sge_qmaster=gridengine-master" "$here/sge_execd=gridengine-exec" "$here/qsub=gridengine-client" \
    "$drmaa=gridengine-drmaa1.0" patchelf=patchelf
# libdrmaa needs libjemalloc, which a running interpreter cannot load ("static TLS block"); a copy does without.
if [ ! -e "$DRMAA_LIBRARY_PATH" ]; then
    patchelf --remove-needed libjemalloc.so.2 --output "$DRMAA_LIBRARY_PATH.new" "$drmaa"
    mv "$DRMAA_LIBRARY_PATH.new" "$DRMAA_LIBRARY_PATH"
fi
[ -e "$base/default/made" ] || make_cell
# All names of this machine are one to Grid Engine, whatever the resolver says.
echo "localhost $(hostname)" >"$base/default/common/host_aliases"
if ! up sge_qmaster; then
    rm -f "$(pid_of sge_qmaster)"
    begin "$SGE_QMASTER_PORT" sge_qmaster
fi
await timeout 10 qconf -sh
qconf -sq all.q >"$base/log/queue" 2>&1 || add_objects >"$base/log/objects" 2>&1 ||
    { echo "$name: $(tail -n 1 "$base/log/objects")"; exit 1; }
if ! up sge_execd; then
    rm -f "$(pid_of sge_execd)"
    # A shepherd closes every descriptor that it could have.
    (ulimit -n 1024 && begin "$SGE_EXECD_PORT" sge_execd)
fi
await takes_jobs
echo "Grid Engine $(qstat -help | awk 'NR == 1 { print $NF }'), SGE_ROOT=$SGE_ROOT"
