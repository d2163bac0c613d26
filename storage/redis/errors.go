package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"strings"
	"unicode"

	"github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
)

// fault is what went wrong, in words that hold no secret. What it stands for is not wrapped: a script's error may quote
// its arguments, which are tokens.
type fault struct {
	kind    error // what it matches; nil: nothing
	text    string
	unknown bool // whether anything was done
}

func (f *fault) Error() string {
	if f.kind == nil {
		return f.text
	}
	return f.text + ": " + f.kind.Error()
}

func (f *fault) Unwrap() error { return f.kind }

// answers explain what a server says, by the first word of it. What it says beyond that is shown only where it cannot
// quote a value.
var answers = []struct {
	word, text string
	kind       error
	shown      bool
}{
	{"NOAUTH", "Redis wants a user or a password", fs.ErrPermission, false},
	{"WRONGPASS", "Redis refuses the user or the password", fs.ErrPermission, false},
	{"NOPERM", "Redis lets this user not do that: allow EVAL, GET, GETRANGE, SET, DEL, RPUSH and SCAN on the prefix's keys", fs.ErrPermission, true},
	{"READONLY", "this Redis is a replica: connect to the primary", brokerauth.ErrUnavailable, false},
	{"LOADING", "Redis is loading its data", brokerauth.ErrUnavailable, false},
	{"MASTERDOWN", "this Redis is a replica without its primary", brokerauth.ErrUnavailable, false},
	{"CLUSTERDOWN", "the Redis Cluster is down", brokerauth.ErrUnavailable, false},
	{"TRYAGAIN", "the Redis Cluster is moving keys", brokerauth.ErrUnavailable, false},
	{"MOVED", "the Redis Cluster is moving keys", brokerauth.ErrUnavailable, false},
	{"ASK", "the Redis Cluster is moving keys", brokerauth.ErrUnavailable, false},
	{"BUSY", "Redis is busy with somebody's script", brokerauth.ErrUnavailable, false},
	{"OOM", "Redis has no memory left for another record", brokerauth.ErrUnavailable, false},
	{"MISCONF", "Redis takes no changes, because it cannot write to its disk", brokerauth.ErrUnavailable, false},
	{"NOREPLICAS", "Redis takes no changes, because too few replicas follow it", brokerauth.ErrUnavailable, false},
	{"UNBLOCKED", "this Redis has become a replica", brokerauth.ErrUnavailable, false},
	{"WRONGTYPE", "something else stands there than a record: delete it, if it is nobody's", brokerauth.ErrCorrupt, false},
}

func explain(ctx context.Context, err error) error {
	if err := ended(ctx); err != nil {
		return err // which the client may say in other words
	}
	if e := (*fault)(nil); errors.As(err, &e) {
		return e
	}
	if e, ok := errors.AsType[redis.Error](err); ok {
		return explainAnswer(e.Error())
	}
	text := "Redis cannot be reached"
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return &fault{kind: brokerauth.ErrUnavailable, text: text + " (" + e.Error() + ")", unknown: e.Op != "dial"}
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return &fault{kind: brokerauth.ErrUnavailable, text: text + " (" + e.Error() + ")"}
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &fault{kind: brokerauth.ErrUnavailable, text: text + " (" + e.Error() + ")"}
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		text = "the connection to Redis ended"
	case errors.Is(err, redis.ErrClosed):
		return &fault{kind: fs.ErrClosed, text: "the client is closed"}
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return &fault{kind: brokerauth.ErrUnavailable, text: "all connections to Redis are in use: raise the client's PoolSize"}
	default:
		text += " (" + clean(err.Error()) + ")"
	}
	return &fault{kind: brokerauth.ErrUnavailable, text: text, unknown: true}
}

func explainAnswer(said string) error {
	text := clean(said)
	for _, a := range answers {
		if word, _, _ := strings.Cut(strings.TrimPrefix(text, "ERR "), " "); word != a.word {
			continue
		}
		if a.shown {
			return &fault{kind: a.kind, text: a.text + " (" + text + ")"}
		}
		return &fault{kind: a.kind, text: a.text}
	}
	word, _, _ := strings.Cut(text, " ")
	return &fault{text: "Redis refuses the command (" + clean(word) + ")"}
}

// clean makes text from outside fit for a terminal and a log line.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	if s = strings.Join(strings.Fields(s), " "); len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}
