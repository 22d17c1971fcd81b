# The attendant of one program on one host. It is the script of a shell that reads it from its standard input (`sh -s`),
# and so are the requests after it: calls of the functions below. Needs a POSIX shell, mkfifo, and cat, ln, mkdir, rm.
#
# It works in the session's directory. Below that each program has a directory, and in it each of its jobs has one, named
# by its number: script (whose it is, what was asked for, and what its command's process does), pid (host and boot, the
# command's process, which is by setsid its group, and the shell that waits for it), out, err, end; lease (whether the
# host ended it, which had heard nothing of its program). Beside the jobs it has the directory tell, with those that want
# to be told of them.
#
# A job costs two forks, and the programs setsid and the command itself: nothing else that is run may be one for each job.
#
# What it tells goes through a named pipe, which all that tell something open: lines of up to PIPE_BUF bytes stay whole
# there. One `cat` carries them into the connection. Who waits for a job's end writes it down first and then looks for
# pipes, and who makes a new pipe looks for ends afterwards: so no end is missed.
w_umask=$(umask) # the user's own, which jobs have
umask 077
w_tab=$(printf '\t')
wfl_cr=$(printf '\r') # for texts of jobs
w_say() { printf '%s\n' "$*" >&9; }
w_no() { w_say "- $*"; }
w_fail() { printf 'fail %s\n' "$*"; exit 1; }

w_here() { # who and when this is: host, boot, and the seconds since then
    w_host= w_boot= w_up=
    { read -r w_host </proc/sys/kernel/hostname; } 2>/dev/null || w_host=$(uname -n)
    { read -r w_boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
    w_proc=
    [ -r /proc/self/stat ] && [ -r /proc/uptime ] && w_proc=yes
    w_now
    w_group=$(command -v setsid)
    case $w_group in /*) ;; ?*) w_group=setsid ;; esac
}
w_now() { [ -z "$w_proc" ] || read -r w_up w_rest </proc/uptime; }
w_self() { # the number of this very process, also of a subshell's
    w_ticks= w_parent=
    if [ -n "$w_proc" ]; then
        read -r w_stat </proc/self/stat
        w_fields "$w_stat"
        w_pid=${w_stat%% *}
    else
        w_pid=$(exec sh -c 'echo "$PPID"')
    fi
}

w_enter() { # DIRECTORY SESSION: go to the session's directory, which is made with 'make' as the third
    case $1 in /*) ;; *) cd || w_fail 'the home directory cannot be entered' ;; esac
    [ "$3" != make ] || mkdir -p -- "$1/$2" || w_fail "no directory $1/$2 can be made"
    cd -- "$1/$2" 2>/dev/null || w_fail 'nothing'
    w_here
}

w_begin() { # open the way back, and tell who this is
    for w_old in tell."$w_host".*; do
        [ -p "$w_old" ] && ! kill -0 "${w_old##*.}" 2>/dev/null || continue
        rm -f -- "$w_old" */tell/"$w_old" "at.$w_host."*".${w_old##*.}"
    done
    w_tell=tell.$w_host.$$
    rm -f -- "$w_tell"
    mkfifo -m 600 "$w_tell" || w_fail 'no named pipe can be made'
    exec 9<>"$w_tell"
    w_self
    w_me="$w_pid $w_ticks"
    # Both end with this shell, however that does; until then the second takes what can be told to nobody any more.
    { cat; cat >/dev/null; w_end; } <"$w_tell" 9>&- &
    w_say "hello$w_tab$w_host$w_tab$w_boot$w_tab$w_up$w_tab$(date +%s)$w_tab$(uname -s -m)$w_tab$w_group$w_tab$HOME$w_tab$PWD"
}
w_end() { # nobody listens any more
    rm -f -- "$w_tell" */tell/"$w_tell" "at.$w_host."*".$$"
    rmdir -- */tell */ 2>/dev/null
    w_gone=$PWD
    cd .. && rmdir -- "$w_gone" 2>/dev/null
}
w_tell_me() { # PROGRAM: of its jobs; another attendant that ends may remove the directory before anything is in it
    for w_try in 1 2 3 4 5; do
        mkdir -p -- "$1/tell" || return
        ln -sf "../../$w_tell" "$1/tell/$w_tell" 2>/dev/null && return
    done
    return 1
}
w_follow() { # REQUEST PROGRAM...: tell of the jobs of these, too
    w_request=$1
    shift
    for w_n; do
        [ ! -d "$w_n" ] || w_tell_me "$w_n"
    done
    w_say "+ $w_request"
}
w_own() { # REQUEST PROGRAM OWNER LEASE: this program's own jobs, which end when nothing is heard of it for so long
    if w_tell_me "$2" && printf '%s\n' "$w_me" >"at.$w_host.$3.$$"; then
        [ "$4" = 0 ] || w_guard "$3" "$4"
        w_say "+ $1"
    else
        w_no "$1"
    fi
}

w_guard() { # OWNER LEASE: one for each host and owner, which outlives the connection
    { read -r w_guardian w_ticks <"guard.$w_host.$1"; } 2>/dev/null && w_lives "$w_guardian" "$w_ticks" && return
    w_guardian=
    w_rest=$( ( w_watch "$1" "$2" & ) </dev/null 2>/dev/null 9>&-) # until it is known who that is: there is one only
}
w_watch() {
    trap '' HUP INT QUIT
    trap - EXIT
    w_heard= w_quiet=0
    trap w_heard=yes USR1 # a sign of life, for which there is room on any disk
    w_self
    kill -s USR1 "$w_pid"
    [ -n "$w_heard" ] || exit # ignored when sshd was started, and so for good: nobody would seem to live
    w_heard=
    printf '%s %s\n' "$w_pid" "$w_ticks" >"guard.$w_host.$1" || exit # the next sign of life finds that nobody guards
    exec >/dev/null
    w_step=$(($2 / 10 + 1))
    [ "$w_step" -le 10 ] || w_step=10
    while { sleep "$w_step" || [ -n "$w_heard" ]; } && w_guards "$1"; do
        case $w_heard in
        yes) w_quiet=0 w_heard= ;;
        *) w_quiet=$((w_quiet + w_step)) ;;
        esac
        if [ "$w_quiet" -ge "$2" ]; then
            w_jobs "$1"
            for w_n in $w_left; do printf '' >"$w_n/lease"; done
            w_end_all "$1"
            w_bye "$1"
            break
        fi
    done
    cd .. && rmdir -- "$OLDPWD" 2>/dev/null
}
w_guards() { { read -r w_guardian w_rest <"guard.$w_host.$1"; } 2>/dev/null && [ "$w_guardian" = "$w_pid" ]; }
w_beats() { # REQUEST OWNER LEASE: it lives; who guards that is gone where it has ended the jobs meanwhile
    w_guard "$2" "$3"
    [ -z "$w_guardian" ] || kill -s USR1 "$w_guardian"
    w_say "+ $1"
}
w_bye() { rm -f -- "guard.$w_host.$1"; } # OWNER: there is nothing to guard any more

w_drop() { # JOB...: those that were just made, and what is none; one that was there before is not empty
    for w_n; do
        rmdir -- "$w_n" 2>/dev/null || [ -d "$w_n" ] || rm -f -- "$w_n"
    done
}
w_put() { # JOB OWNER WHAT TEXT: what is kept of its orders; the text is what the process of its command does
    printf '# %s\n# %s\n%s\n' "$2" "$3" "$4" >"$1/script"
}
w_one() { # JOB INDEX BODY: in a process of its own, to the job's end and longer than this connection
    # What a shell says when a signal has ended the command stands where the end will, and tells it from exit statuses.
    exec </dev/null >/dev/null 2>"$1/end"
    wfl_index=$2 w_place=$PWD/$1
    WFL_JOB_DIRECTORY=$w_place/
    export WFL_JOB_DIRECTORY
    trap : HUP INT QUIT TERM USR1 USR2 XCPU XFSZ # they may be for all of the user's processes, and this one has to tell
    w_waits=
    [ -n "$w_proc" ] || { w_self && w_waits=$w_pid; }
    w_now
    w_begun=$w_up
    (
        w_note "$1"
        "$3"
    ) 2>/dev/null # what this one complains of is no word on how the command has ended
    w_over "$1" "$?"
}
w_note() { # JOB: write down who becomes its command, and end at once if that was ordered before
    w_self
    wfl_out=$w_place/out wfl_err=$w_place/err
    printf '%s|%s|%s|%s|%s\n' "$w_host" "$w_boot" "$w_pid" "$w_ticks" "${w_parent:-$w_waits}" >"$1/pid" ||
        wfl_refuse "$w_unknown"
    [ ! -e "$1/stop" ] || { read -r w_sig <"$1/stop" && kill -s "$w_sig" "$w_pid"; }
}
w_unknown='its pid cannot be written: is the disk full?'
wfl_refuse() { # WORDS: the command is never run
    printf 'refused %s\n.\n' "$1" >"$w_place/end"
    exit 125
}
w_batch() { w_self && w_chain=$w_pid; } # before many of these in one pipeline: after & they would ignore SIGINT for good
w_leave() { kill -9 "$w_chain"; }
w_over() { # JOB STATUS: write down its end, and tell of it
    if [ "$2" != 125 ] || ! w_whole "$1"; then
        w_said=no
        [ "$2" -gt 128 ] && [ -s "$1/end" ] && w_said=yes
        w_now
        # A shell gives its count of the times to a file only.
        set -- "$1" "status $2" "said $w_said" "shell ${BASH_VERSION:+bash}" "begun $w_begun" "over $w_up" .
        {
            times
            printf '%s\n%s\n%s\n%s\n%s\n%s\n' "$2" "$3" "$4" "$5" "$6" "$7"
        } >"$1/end"
        { read -r w_own && read -r w_its; } <"$1/end"
        w_text=$w_own$w_tab$w_its$w_tab$2$w_tab$3$w_tab$4$w_tab$5$w_tab$6$w_tab$7$w_tab
        [ ! -e "$1/lease" ] || w_text=lease$w_tab$w_text
        [ "$2" != 'status 125' ] || [ -s "$1/pid" ] || w_text="refused $w_unknown$w_tab.$w_tab"
    fi
    for w_to in "${1%/*}/tell/tell.$w_host".*; do
        [ ! -p "$w_to" ] || printf 'e\t%s\t%.3900s\n' "$1" "$w_text" 1<>"$w_to"
    done
}
w_text() { # $1/end in one line
    w_text=
    [ ! -e "$1/lease" ] || w_text="lease$w_tab"
    { while read -r w_line; do w_text="$w_text$w_line$w_tab"; done <"$1/end"; } 2>/dev/null
}

w_ticks_of() { # PID: when it began, in the system's own count, with which its number is its name for ever
    w_ticks= w_state= w_stat=
    # A program's name may have line breaks.
    { while read -r w_line; do w_stat="$w_stat $w_line"; done <"/proc/$1/stat"; } 2>/dev/null || return 1
    w_fields "$w_stat"
}
w_fields() {
    set -- ${1##*) }
    w_state=$1 w_parent=$2 w_ticks=${20}
}
w_lives() { # PID TICKS
    if [ -z "$1" ]; then
        return 1
    elif [ -n "$2" ]; then
        w_ticks_of "$1" && [ "$w_ticks" = "$2" ] && [ "$w_state" != Z ]
    else
        kill -0 "$1" 2>/dev/null
    fi
}
w_command() { # JOB: its command's process, if that is there still
    w_at "$1"
    w_lives "$w_process" "$w_since"
}
w_waiter() { # whether the shell that waits for the last one is there: it began no later than that
    if [ -z "$w_waits" ]; then
        return 1
    elif [ -n "$w_since" ]; then
        w_ticks_of "$w_waits" && [ "$w_ticks" -le "$w_since" ] && [ "$w_state" != Z ]
    else
        kill -0 "$w_waits" 2>/dev/null
    fi
}

w_forbid() { # REQUEST OWNER JOB...: the same of jobs whose orders may still be on their way: what is not there never begins
    w_request=$1 w_by=$2
    shift 2
    for w_n; do
        mkdir -- "$w_n" 2>/dev/null || continue
        printf '# %s\n' "$w_by" >"$w_n/script"
        printf 'refused its orders did not arrive\n.\n' >"$w_n/end"
    done
    w_look "$w_request" "$@"
}
w_look() { # REQUEST JOB...: where these are
    w_request=$1
    shift
    for w_n; do
        if [ ! -d "$w_n" ]; then
            w_say "g$w_tab$w_request$w_tab$w_n"
            continue
        fi
        w_at "$w_n"
        w_how=none
        if ! w_whole "$w_n" && [ "$w_home" = here ]; then
            if w_command "$w_n"; then w_how=$w_state; elif w_waiter; then w_how=waits; fi
            w_waiter || w_how=alone$w_how
        fi
        if w_whole "$w_n"; then # looked at once more, as it may just have ended
            printf 'f\t%s\t%s\t%s\t%.3900s\n' "$w_request" "$w_n" "$w_home" "$w_text" >&9
        else
            w_say "r$w_tab$w_request$w_tab$w_n$w_tab$w_home$w_tab$w_how$w_tab$w_ran"
        fi
    done
    w_say "+ $w_request"
}
w_whole() { # JOB: whether its end is written down, into w_text
    w_text "$1"
    [ "${w_text%".$w_tab"}" != "$w_text" ]
}
w_at() { # NUMBER: where it runs: 'here', 'before' (an earlier boot), 'there' (another host), 'nowhere' (yet)
    w_ran= w_of= w_process= w_since= w_waits=
    { IFS='|' read -r w_ran w_of w_process w_since w_waits <"$1/pid"; } 2>/dev/null
    case $w_ran in
    "") w_home=nowhere ;;
    "$w_host") [ "$w_of" = "$w_boot" ] && w_home=here || w_home=before ;;
    *) w_home=there ;;
    esac
}

w_signal() { # REQUEST SIGNAL JOB...: to all processes of these
    w_request=$1 w_sig=$2
    shift 2
    for w_n; do
        w_at "$w_n"
        if [ ! -d "$w_n" ] || [ -s "$w_n/end" ]; then
            w_say "x$w_tab$w_request$w_tab$w_n${w_tab}over"
            continue
        fi
        case $w_home in before | there) continue ;; esac
        case $w_sig in KILL | TERM) printf '%s\n' "$w_sig" >"$w_n/stop" ;; esac
        if w_command "$w_n"; then
            w_send "$w_sig" "$w_process"
        else
            w_say "x$w_tab$w_request$w_tab$w_n${w_tab}again"
        fi
    done 2>/dev/null
    w_others "$w_sig" "$@"
    [ "$w_sig" != TERM ] || w_others CONT "$@"
    w_say "+ $w_request"
}
w_send() { # SIGNAL PROCESS: to its group, or without groups to all below it
    [ "$1" != TERM ] || set -- "$@" CONT
    for w_sent in "$1" $3; do
        if [ -n "$w_group" ] && kill -s "$w_sent" -- "-$2"; then
            continue
        elif [ -z "$w_group" ]; then
            w_below "$2"
            kill -s "$w_sent" $w_all
        else
            kill -s "$w_sent" "$2"
        fi
    done
}
w_below() { # PROCESS: it and all below it, into w_all
    w_all=$1
    w_list=$(ps -A -o pid= -o ppid=)
    w_more=yes
    while [ -n "$w_more" ]; do
        w_more=
        set -- $w_list
        while [ $# -gt 1 ]; do
            case " $w_all " in
            *" $1 "*) ;;
            *" $2 "*) w_all="$w_all $1" w_more=yes ;;
            esac
            shift 2
        done
    done
}
w_others() { # SIGNAL JOB...: to those that left their group, by the directory in their environment
    w_sig=$1
    shift
    [ -r /proc/self/environ ] || return 0
    while [ $# -gt 0 ]; do
        w_patterns= w_count=0
        while [ $# -gt 0 ] && [ "$w_count" -lt 500 ]; do # what fits into one word of a command
            w_patterns="$w_patterns
WFL_JOB_DIRECTORY=$PWD/$1/"
            w_count=$((w_count + 1))
            shift
        done
        for w_file in $(w_having "${w_patterns#?}"); do
            w_file=${w_file#/proc/}
            kill -s "$w_sig" "${w_file%/environ}" 2>/dev/null
        done
    done
}
w_having() { # LINES: the environments with one of these; some greps see nothing behind a NUL
    if [ "$(printf 'a\0b' | grep -c -F b 2>/dev/null)" = 1 ]; then
        grep -l -F -e "$1" /proc/[0-9]*/environ 2>/dev/null
    elif cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | grep -q -F -e "$1"; then
        for w_file in /proc/[0-9]*/environ; do
            [ -r "$w_file" ] && tr '\0' '\n' <"$w_file" | grep -q -F -e "$1" && printf '%s\n' "$w_file"
        done 2>/dev/null
    fi
}

w_jobs() { # OWNER: all of its jobs that are here or not begun, or with '*' those of all owners; into w_found, w_left
    w_found= w_left=
    for w_n in */[0-9]*; do
        w_by=
        { read -r w_by <"$w_n/script"; } 2>/dev/null
        [ "$w_by" = "# $1" ] || [ "$1" = '*' ] && [ -d "$w_n" ] || continue
        w_at "$w_n"
        [ "$w_home" != there ] || continue
        w_found="$w_found $w_n"
        [ "$w_home" = before ] || [ -s "$w_n/end" ] || w_left="$w_left $w_n"
    done
}
w_end_all() { # OWNER: end all of it that runs here
    w_tries=0
    while w_jobs "$1" && [ -n "$w_left" ] && [ "$w_tries" -lt 50 ]; do
        for w_n in $w_left; do
            printf 'KILL\n' >"$w_n/stop"
            w_command "$w_n" && w_send KILL "$w_process"
        done 2>/dev/null
        w_others KILL $w_left
        w_tries=$((w_tries + 1))
        sleep 0.1 2>/dev/null || sleep 1
        [ "$w_tries" -lt 10 ] || w_drop_dead
    done
}
w_drop_dead() { # what nobody waits for any more will never write down its end
    for w_n in $w_left; do
        w_command "$w_n" || w_waiter || printf 'lost\n' >"$w_n/end"
    done
}
w_remove() { # JOB...: their directories, though the shell of one may be at its last words; and what came before them
    while [ $# -gt 0 ]; do
        w_words= w_count=0
        while [ $# -gt 0 ] && [ "$w_count" -lt 500 ]; do
            w_n=${1%/*} w_number=${1#*/}
            w_words="$w_words $1 $w_n/in.$w_number $w_n/.in.$w_number.wfl-$w_n-$w_number"
            w_count=$((w_count + 1))
            shift
        done
        for w_try in 1 2 3 4 5; do
            rm -rf -- $w_words 2>/dev/null && continue 2
            sleep 0.1 2>/dev/null || sleep 1
        done
        rm -rf -- $w_words || return
    done
}
w_sweep() { # programs that have no jobs, and that nobody else is at work with
    for w_program in */; do
        set -- "$w_program"[0-9]*
        [ ! -d "$1" ] || continue
        for w_old in "$w_program"tell/*; do
            [ -p "$w_old" ] && [ "${w_old##*/}" != "$w_tell" ] || rm -f -- "$w_old"
        done
        rmdir -- "$w_program"tell "$w_program" 2>/dev/null
    done
    return 0
}
w_alone() { # OWNER: what its other connections still bring comes too late: who would carry it out ends
    for w_old in "at.$w_host.$1."*; do
        { read -r w_other w_since <"$w_old" && [ "$w_other" != "$$" ] && w_lives "$w_other" "$w_since"; } || continue
        kill -9 "$w_other"
    done 2>/dev/null
}
w_close() { # REQUEST OWNER KEEP: end all of it, with what jobs left running, and leave nothing but what is to be kept
    w_alone "$2"
    w_end_all "$2"
    w_others KILL $w_found
    [ "$3" = keep ] || w_remove $w_found
    w_bye "$2"
    w_sweep
    w_say "+ $1"
}
w_leave_all() { # REQUEST OWNER: all of it goes on
    w_bye "$2"
    w_sweep
    w_say "+ $1"
}
w_clean() { # REQUEST: end all of all owners, and remove it
    w_jobs '*'
    set -- "$1" $w_left
    w_say "x$w_tab$1$w_tab$(($# - 1))"
    w_end_all '*'
    w_remove $w_found
    rm -f -- guard.* at.*
    w_sweep
    w_say "+ $1"
}
w_reap() { # REQUEST JOB...: remove all that is kept of these
    w_request=$1
    shift
    w_remove "$@" && w_say "+ $w_request" || w_no "$w_request"
}
