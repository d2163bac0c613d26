package engine

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const (
	// User and Password are those of every PostgreSQL and Redis here.
	User     = "brokerauth"
	Password = "emulated.database-password"
)

const debianPostgreSQL = "/usr/lib/postgresql/*/bin/"

// PostgreSQL starts a server with one database, postgres, that User owns. Settings are lines of its configuration.
// Unless they say otherwise it does not wait for the disk, which a crash of the server alone does not need.
func PostgreSQL(t testing.TB, settings ...string) *Server {
	t.Helper()
	initdb := find(t, "initdb", debianPostgreSQL+"initdb", "postgresql")
	dir := folder(t)
	data, secret := filepath.Join(dir, "data"), filepath.Join(dir, "password")
	if err := errors.Join(os.WriteFile(secret, []byte(Password+"\n"), 0o600), own(secret)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(initdb, "--no-sync", "--auth=scram-sha-256", "--username="+User, "--pwfile="+secret,
		"--locale=C", "--encoding=UTF8", "--pgdata="+data)
	cmd.Dir, cmd.SysProcAttr = dir, attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	f, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range append([]string{"fsync = off", "unix_socket_directories = ''", "max_connections = 200",
		"shared_buffers = 32MB", "log_min_messages = fatal"}, settings...) {
		fmt.Fprintln(f, line)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	isready := find(t, "pg_isready", debianPostgreSQL+"pg_isready", "postgresql")
	return launch(t, Server{path: find(t, "postgres", debianPostgreSQL+"postgres", "postgresql"), Dir: dir,
		// An immediate shutdown leaves the server to recover as after a crash, but no process of it behind.
		end: syscall.SIGINT, crash: syscall.SIGQUIT,
		ready: func(s *Server) error {
			return exec.Command(isready, "-q", "-h", "127.0.0.1", "-p", s.Port).Run()
		}}, func(port string) []string {
		return []string{"-D", data, "-h", "127.0.0.1", "-p", port}
	})
}

// URL is where a client finds a database of a PostgreSQL server, the password included.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", User, Password, s.Addr, database)
}

// PgBouncer starts a pooler in front of a PostgreSQL server, which lends a connection for one transaction.
func PgBouncer(t testing.TB, behind *Server, connections int) *Server {
	t.Helper()
	path := find(t, "pgbouncer", "/usr/sbin/pgbouncer", "pgbouncer")
	dir := folder(t)
	users, config := filepath.Join(dir, "users.txt"), filepath.Join(dir, "pgbouncer.ini")
	return launch(t, Server{path: path, Dir: dir, end: syscall.SIGINT, crash: syscall.SIGKILL, ready: dial}, func(port string) []string {
		err := errors.Join(
			os.WriteFile(users, fmt.Appendf(nil, "%q %q\n", User, Password), 0o600), own(users),
			os.WriteFile(config, fmt.Appendf(nil, "[databases]\n* = host=127.0.0.1 port=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"+
				"listen_port = %s\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = %s\npool_mode = transaction\n"+
				"default_pool_size = %d\nmax_client_conn = 500\n", behind.Port, port, users, connections), 0o600), own(config))
		if err != nil {
			t.Fatal(err)
		}
		return []string{config}
	})
}

// Redis starts a server with the given settings beyond its own. Unless they say otherwise it keeps nothing on disk.
func Redis(t testing.TB, settings ...string) *Server {
	t.Helper()
	path := find(t, "redis-server", "/usr/bin/redis-server", "redis-server")
	return launch(t, Server{path: path, Dir: folder(t), end: syscall.SIGTERM, crash: syscall.SIGKILL, ready: ping}, func(port string) []string {
		return append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"}, settings...)
	})
}

// Sentinel starts a Redis Sentinel with a file of settings, which it must be allowed to write.
func Sentinel(t testing.TB, config string) *Server {
	t.Helper()
	path := find(t, "redis-server", "/usr/bin/redis-server", "redis-server")
	return launch(t, Server{path: path, Dir: filepath.Dir(config), end: syscall.SIGTERM, crash: syscall.SIGKILL, ready: ping}, func(port string) []string {
		return []string{config, "--sentinel", "--port", port, "--bind", "127.0.0.1"}
	})
}

func dial(s *Server) error {
	c, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

// ping asks a Redis whether it serves: while it loads its data it does not. One that wants a password does.
func ping(s *Server) error {
	c, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("PING\r\n")); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "+PONG\r\n" && line != "-NOAUTH Authentication required.\r\n" {
		err = errors.New(line)
	}
	return err
}
