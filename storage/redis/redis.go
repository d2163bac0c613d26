// Package redis keeps logins in Redis, for all programs and hosts that reach it.
//
// The caller brings the client, for a single server, Sentinel or a Cluster, with its TLS and its user:
//
//	client := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: …, ContextTimeoutEnabled: true})
//	defer client.Close()
//	store, err := redis.New(client, "") // this package; goredis is github.com/redis/go-redis/v9
//
// A call ends with its context only if the client's ContextTimeoutEnabled is set; else with the client's own timeouts.
//
// Each record is one string, and each change of it one script, which Redis runs alone; the client need not be trusted
// with more than the commands EVAL, GET, GETRANGE, SET, DEL, RPUSH and SCAN, and a Cluster's CLUSTER and COMMAND, on the
// keys of the prefix. The secrets are not encrypted: whoever may read those keys, the server's files or unencrypted
// traffic to it can read them. Package storage/sealed encrypts what any store keeps.
//
// # What Redis keeps
//
// How long a change lasts that was reported as done is a matter of the server's settings:
//
//   - with appendonly yes and appendfsync always, it is on the server's disk;
//   - with appendonly yes alone, a power failure loses what was written in the last second;
//   - with snapshots alone, a crash loses everything since the last one; with neither, a restart loses all logins;
//   - a failover to a replica, by Sentinel or in a Cluster, loses what had not reached it. With min-replicas-to-write 1
//     and min-replicas-max-lag 10, that is bounded by some seconds, and a primary without replicas refuses writes;
//   - a maxmemory-policy other than noeviction deletes logins when memory is short.
//
// What that means: a login that is lost altogether is [brokerauth.ErrLoginRequired], "nobody is logged in". One that
// falls back to an earlier token is as good as before with brokers whose refresh tokens do not change. With one that
// issues a new refresh token each time, the next refresh spends an old one, and a person must log in again: where the
// claim of the lost refresh has survived, the error says that the refresh token may have been rotated, and when.
// So for such brokers use appendfsync always, or PostgreSQL with a synchronous standby.
//
// # Errors
//
// A server that cannot be reached, does not answer within ten seconds, is loading, read-only or out of memory, and a
// Cluster that is down, are [brokerauth.ErrUnavailable]. A user or password that is refused, and a command that the user
// may not use, are [fs.ErrPermission]. Something else than a record at its key is [brokerauth.ErrCorrupt]. Where the
// connection ended before the answer came, the error of CompareAndSwap says that the outcome is unknown: the client
// does not repeat it, whatever its MaxRetries. No error holds a password.
package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/brokerauth/brokerauth"
)

const (
	maxRecord = 1 << 20          // bytes; a login has one or two thousand
	patience  = 10 * time.Second // that one command may take, waiting for a connection included
	page      = 1000             // keys that one SCAN looks at
)

// The keys of a record and of what was set aside of it share a hash tag, so that a Cluster has them on one server.
const (
	opening = "{"
	closing = "}"
	aside   = ".bad"
)

// swapScript replaces KEYS[1] by ARGV[2] if it is ARGV[1]; empty: none. What was set aside goes with the record: only to
// delete are there two keys. A Cluster refuses what names two keys, as long as it moves their slot.
const swapScript = `
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('DEL', KEYS[1], KEYS[2]) end
return 1`

// asideScript moves KEYS[1] to the end of the list KEYS[2], and returns how long that is then.
const asideScript = `
local record = redis.call('GET', KEYS[1])
if not record then return 0 end
local length = redis.call('RPUSH', KEYS[2], record)
redis.call('DEL', KEYS[1])
return length`

var _ brokerauth.Store = (*Store)(nil)

// Store keeps records under keys with one prefix. Any number of Stores, in any number of processes and on any number of
// hosts, may share them.
type Store struct {
	client redis.UniversalClient
	prefix string
	loads  chan struct{} // holds the loads under way
}

// New returns the store in client's database, which stays the caller's to close. New asks nobody. Keys begin with
// prefix; empty: "brokerauth:".
//
// A ClusterClient that reads from replicas is an error, since what these show may be old, and so is a client that spreads
// keys over servers by itself, a redis.Ring. Neither a replica's own address nor FailoverOptions.ReplicaOnly is noticed:
// connect to the primary.
//
// However many loads wait for a connection, a write is not behind them: they use one connection less than the client's
// PoolSize, but for the only one.
func New(client redis.UniversalClient, prefix string) (*Store, error) {
	var pool int
	switch c := client.(type) {
	case nil:
		return nil, errors.New("redis: there is no client to reach a server with")
	case *redis.Client:
		pool = c.Options().PoolSize
	case *redis.ClusterClient:
		pool = c.Options().PoolSize
		if c.Options().ReadOnly {
			return nil, errors.New("redis: this client reads from replicas, which may be behind: " +
				"leave ReadOnly, RouteByLatency and RouteRandomly out")
		}
	default:
		return nil, fmt.Errorf("redis: a %T cannot keep logins: use a redis.Client or a redis.ClusterClient", client)
	}
	if strings.ContainsAny(prefix, opening+closing) {
		return nil, fmt.Errorf("redis: the prefix %q has braces in it, which say where a Cluster keeps a key: leave them out", prefix)
	}
	if prefix == "" {
		prefix = "brokerauth:"
	}
	// A token that a broker issued must not wait behind those who ask for one.
	return &Store{client, prefix, make(chan struct{}, max(1, pool-1))}, nil
}

// Format prints the prefix alone: the client holds a password.
func (s *Store) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "redis keys %s*", s.prefix) }

// Load returns the record at key. A missing one is [fs.ErrNotExist]; one that is empty or larger than 1 MiB, as no Store
// writes it, is [brokerauth.ErrCorrupt].
func (s *Store) Load(ctx context.Context, key brokerauth.Key) ([]byte, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	var record []byte
	err := bounded(ctx, func(ctx context.Context) (err error) {
		select {
		case s.loads <- struct{}{}:
			defer func() { <-s.loads }()
		case <-ctx.Done():
			return ctx.Err()
		}
		// It reads no more than a record may have, but tells none from an empty one, as GET does.
		record, err = s.client.GetRange(ctx, s.key(key), 0, maxRecord).Bytes()
		if err == nil && len(record) == 0 {
			record, err = s.client.Get(ctx, s.key(key)).Bytes()
		}
		return err
	})
	switch {
	case errors.Is(err, redis.Nil):
		return nil, fmt.Errorf("redis: %s: %w", s.Where(key), fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("redis: %s: %w", s.Where(key), err)
	case len(record) == 0:
		return nil, fmt.Errorf("redis: %s: the record is empty: restore it from a backup, or log in again: %w",
			s.Where(key), brokerauth.ErrCorrupt)
	case len(record) > maxRecord:
		return nil, fmt.Errorf("redis: %s: the record is larger than %d bytes: restore it from a backup, or log in again: %w",
			s.Where(key), maxRecord, brokerauth.ErrCorrupt)
	}
	return record, nil
}

// CompareAndSwap replaces the record at key by new if it still is old, as [brokerauth.Store] says, in one script. A new
// nil deletes what SetAside moved away, too.
//
// A new that is empty and not nil, or larger than 1 MiB, is an error.
func (s *Store) CompareAndSwap(ctx context.Context, key brokerauth.Key, old, new []byte) (bool, error) {
	if err := check(ctx, key); err != nil {
		return false, err
	}
	switch {
	case new != nil && len(new) == 0:
		return false, errors.New("redis: a record cannot be empty: give nil to delete it")
	case len(new) > maxRecord:
		return false, fmt.Errorf("redis: a record of %d bytes is too large: at most %d fit", len(new), maxRecord)
	case old != nil && len(old) == 0:
		return false, nil // no record is
	}
	names := []string{s.key(key)}
	if new == nil {
		names = append(names, s.key(key)+aside)
	}
	n, err := s.run(ctx, swapScript, names, old, new)
	if err != nil {
		return false, fmt.Errorf("redis: %s: %w", s.Where(key), err)
	}
	return n == 1, nil
}

// Keys returns the keys of all records, sorted by their spelling. In a Cluster it asks every primary.
func (s *Store) Keys(ctx context.Context) ([]brokerauth.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	var mu sync.Mutex
	found := map[brokerauth.Key]bool{} // SCAN may tell of a key twice
	scan := func(ctx context.Context, client redis.Cmdable) error {
		var cursor uint64
		for more := true; more; more = cursor != 0 {
			var names []string
			err := bounded(ctx, func(ctx context.Context) (err error) {
				names, cursor, err = client.Scan(ctx, cursor, escape(s.prefix)+opening+"*"+closing, page).Result()
				return err
			})
			if err != nil {
				return err
			}
			mu.Lock()
			for _, name := range names {
				name = strings.TrimSuffix(strings.TrimPrefix(name, s.prefix+opening), closing)
				if key, err := brokerauth.ParseKey(name); err == nil {
					found[key] = true
				}
			}
			mu.Unlock()
		}
		return nil
	}
	var err error
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		if err = cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return scan(ctx, c) }); err != nil {
			err = explain(ctx, err)
		}
	} else {
		err = scan(ctx, s.client)
	}
	if err != nil {
		return nil, fmt.Errorf("redis: keys %s*: %w", s.prefix, err)
	}
	var keys []brokerauth.Key
	for key := range found {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b brokerauth.Key) int { return strings.Compare(a.String(), b.String()) })
	return keys, nil
}

// escape makes a pattern that matches s alone.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// Where names the key that the record at key is kept under.
func (s *Store) Where(key brokerauth.Key) string { return "Redis key " + s.key(key) }

// SetAside moves the record at key to the end of a list, so that another can be written, and says which. It stays there
// until the key is deleted.
func (s *Store) SetAside(ctx context.Context, key brokerauth.Key) (where string, err error) {
	if err := check(ctx, key); err != nil {
		return "", err
	}
	n, err := s.run(ctx, asideScript, []string{s.key(key), s.key(key) + aside})
	if err == nil && n == 0 {
		err = fs.ErrNotExist
	}
	if err != nil {
		return "", fmt.Errorf("redis: %s: %w", s.Where(key), err)
	}
	return fmt.Sprintf("element %d of the Redis list %s", n-1, s.key(key)+aside), nil
}

func check(ctx context.Context, key brokerauth.Key) error {
	err := ctx.Err()
	if err == nil {
		err = key.Validate()
	}
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	return nil
}

func (s *Store) key(key brokerauth.Key) string { return s.prefix + opening + key.String() + closing }

// once is a command that the client never sends twice: a swap whose answer was lost may have been done, and a second
// one would then report that it was not.
type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// run runs a script on keys. A nil argument is empty.
func (s *Store) run(ctx context.Context, script string, keys []string, args ...[]byte) (n int, err error) {
	err = bounded(ctx, func(ctx context.Context) (err error) {
		words := []any{"EVAL", script, len(keys)}
		for _, key := range keys {
			words = append(words, key)
		}
		for _, arg := range args {
			words = append(words, arg)
		}
		cmd := once{redis.NewCmd(ctx, words...)}
		if err := s.client.Process(ctx, cmd); err != nil {
			return err
		}
		n, err = cmd.Int()
		return err
	})
	if e := (*fault)(nil); errors.As(err, &e) && e.unknown {
		e.text += "; whether the record was changed is unknown"
	}
	return n, err
}

// bounded calls f, which asks the server one thing, and explains its error.
func bounded(ctx context.Context, f func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := f(limited)
	switch {
	case err == nil, errors.Is(err, redis.Nil):
		return err
	case ended(ctx) == nil && ended(limited) != nil:
		return &fault{kind: brokerauth.ErrUnavailable, text: fmt.Sprintf("Redis did not answer within %s", patience), unknown: true}
	}
	return explain(ctx, err)
}

// ended is ctx.Err, and does not wait for the context's timer: a connection has one of its own for the same moment.
func ended(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return cmp.Or(ctx.Err(), context.DeadlineExceeded)
	}
	return ctx.Err()
}
