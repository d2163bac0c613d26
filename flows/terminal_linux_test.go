package flows_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/brokerauth/brokerauth"
	"github.com/brokerauth/brokerauth/flows"
)

// The tests start themselves as programs that have a terminal, or lack a right.
func TestMain(m *testing.M) {
	if role := os.Getenv("FLOWS_TEST_ROLE"); role != "" {
		play(role, os.Getenv("FLOWS_TEST_REDIRECT"))
		return
	}
	os.Exit(m.Run())
}

func play(role, redirect string) {
	login := *pasteLogin
	if redirect != "" {
		login.RedirectURL = redirect
	}
	finish := func(_ context.Context, callback string) error {
		if !strings.HasPrefix(callback, login.RedirectURL) {
			return &brokerauth.Error{Err: errors.New("no callback")}
		}
		fmt.Println("callback", callback)
		return nil
	}
	o := &flows.Options{Timeout: time.Minute}
	o.Open = func(context.Context, string) error { return nil }
	nextLine := func() {
		tty, err := os.Open("/dev/tty")
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("waiting")
		line, _ := bufio.NewReader(tty).ReadString('\n')
		fmt.Println("next", line)
	}
	switch role {
	case "paste":
		fmt.Println("err", flows.Paste(o)(context.Background(), &login, finish))
	case "system browser":
		o.Open = nil
		end := finish
		finish = func(ctx context.Context, callback string) error {
			seen := filepath.Join(filepath.Dir(os.Getenv("BROWSER")), "seen")
			for stop := time.Now().Add(30 * time.Second); time.Now().Before(stop); time.Sleep(5 * time.Millisecond) {
				if _, err := os.Stat(seen); err == nil {
					break
				}
			}
			return end(ctx, callback)
		}
		fallthrough
	case "paste in the browser flow":
		fmt.Println("err", flows.Browser(o)(context.Background(), &login, finish))
	case "browser":
		o.Open = func(context.Context, string) error {
			time.Sleep(100 * time.Millisecond) // the flow reads the terminal now
			resp, err := http.Get(login.RedirectURL + "?code=c&state=" + state)
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		fmt.Println("err", flows.Browser(o)(context.Background(), &login, finish))
		nextLine()
	case "job control":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "FLOWS_TEST_ROLE=background")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.Output()
		fmt.Printf("%s%v\n", out, err)
		nextLine()
	case "background":
		o.Timeout = 700 * time.Millisecond
		fmt.Println("timeout", errors.Is(flows.Paste(o)(context.Background(), &login, finish), context.DeadlineExceeded))
	case "no terminal":
		fmt.Println("missing", errors.Is(flows.Paste(o)(context.Background(), &login, finish), fs.ErrNotExist))
		o.Timeout = 50 * time.Millisecond
		fmt.Println("timeout", errors.Is(flows.Browser(o)(context.Background(), &login, finish), context.DeadlineExceeded))
	case "denied":
		o.In, o.Out = strings.NewReader(login.RedirectURL+"?code=c&state="+state+"\n"), os.Stdout
		err := flows.Browser(o)(context.Background(), &login, finish)
		fmt.Println("denied", errors.Is(err, fs.ErrPermission) && strings.Contains(err.Error(), "443"), err)
		fmt.Println("err", flows.Auto(o)(context.Background(), &login, finish))
	}
}

// program is this test in another role. Its standard input is never the terminal.
func program(t *testing.T, role, redirect string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "FLOWS_TEST_ROLE="+role, "FLOWS_TEST_REDIRECT="+redirect,
		"GORACE=atexit_sleep_ms=0") // or the race detector waits a second at each end
	return cmd
}

// onTerminal runs a program with a terminal, into which typed is typed, each line once the program or its terminal has
// shown the text before it. It returns what the program wrote to its standard output.
func onTerminal(t *testing.T, role, redirect string, typed ...[2]string) string {
	t.Helper()
	home(t)
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("there are no pseudo-terminals here: %v", err)
	}
	defer screen.Close()
	n, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()

	cmd := program(t, role, redirect)
	out, shown := new(text), new(text)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, shown), shown
	cmd.ExtraFiles = []*os.File{tty}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer kill.Stop()
	drained := make(chan struct{})
	go func() { // what is typed comes back as an echo
		defer close(drained)
		buf := make([]byte, 4096)
		for {
			if _, err := screen.Read(buf); err != nil {
				return
			}
		}
	}()
	for _, line := range typed {
		for end := time.Now().Add(30 * time.Second); !strings.Contains(shown.String(), line[0]); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("the program does not say %q", line[0])
				cmd.Process.Kill()
				break
			}
		}
		io.WriteString(screen, line[1])
	}
	cmd.Wait()
	tty.Close()
	screen.Close()
	<-drained
	return out.String()
}

func TestTerminalPaste(t *testing.T) {
	half := len(whole) / 2
	out := onTerminal(t, "paste", "", [2]string{"30 seconds", "nonsense\n" + whole[:half] + "\n" + whole[half:] + "\n"})
	if !strings.Contains(out, "callback "+whole+"\n") || !strings.Contains(out, "err <nil>") {
		t.Errorf("the program with a terminal says:\n%s", out)
	}
}

// A terminal keeps 4095 bytes of a line. The flow must not take them for all of it.
func TestTerminalCutsLine(t *testing.T) {
	long := whole + "&x=" + strings.Repeat("x", 4096)
	out := onTerminal(t, "paste", "", [2]string{"30 seconds", long + "\n"}, [2]string{"cut that line", whole + "\n"})
	if !strings.Contains(out, "callback "+whole+"\n") || !strings.Contains(out, "err <nil>") {
		t.Errorf("the program with a terminal says:\n%s", out)
	}
}

func TestTerminalPasteInBrowserFlow(t *testing.T) {
	login := newLogin(t, "http://127.0.0.1:%d/cb")
	out := onTerminal(t, "paste in the browser flow", login.RedirectURL, [2]string{"30 seconds", callback(login) + "\n"})
	if !strings.Contains(out, "callback "+callback(login)+"\n") || !strings.Contains(out, "err <nil>") {
		t.Errorf("the program with a terminal says:\n%s", out)
	}
}

// A browser in the terminal would be in the way of the paste, and Ctrl-C there would end a browser on the screen.
func TestSystemBrowserHasNoTerminal(t *testing.T) {
	login := newLogin(t, "http://127.0.0.1:%d/cb")
	seen := browser(t, "%s")
	out := onTerminal(t, "system browser", login.RedirectURL, [2]string{"30 seconds", callback(login) + "\n"})
	if !strings.Contains(out, "err <nil>") {
		t.Errorf("the program with a terminal says:\n%s", out)
	}
	given, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(given), "a terminal") {
		t.Error("the browser has a terminal")
	}
}

func TestTerminalIsLeftAlone(t *testing.T) {
	login := newLogin(t, "http://127.0.0.1:%d/cb")
	out := onTerminal(t, "browser", login.RedirectURL, [2]string{"waiting", "hello\n"})
	if !strings.Contains(out, "err <nil>") || !strings.Contains(out, "next hello\n") {
		t.Errorf("after the browser came first, the program's next line went elsewhere:\n%s", out)
	}
}

// Reading the terminal would stop a program in the background, and take what is typed for another.
func TestTerminalInBackground(t *testing.T) {
	out := onTerminal(t, "job control", "", [2]string{"", "hello\n"})
	if !strings.Contains(out, "timeout true\n<nil>\n") || !strings.Contains(out, "next hello\n") {
		t.Errorf("the program in front says:\n%s", out)
	}
}

func TestNoTerminal(t *testing.T) {
	home(t)
	login := newLogin(t, "http://127.0.0.1:%d/cb")
	cmd := program(t, "no terminal", login.RedirectURL)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || string(out) != "missing true\ntimeout true\n" {
		t.Errorf("the program without a terminal: %v\n%s%s", err, out, &stderr)
	}
	if strings.Contains(stderr.String(), "paste") {
		t.Errorf("the text asks for a paste that nothing reads:\n%s", &stderr)
	}
}

func TestPortDenied(t *testing.T) {
	home(t)
	login := &brokerauth.Login{RedirectURL: "https://127.0.0.1"}
	cmd := program(t, "denied", login.RedirectURL)
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if first, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(first))); err == nil && n <= 443 {
			t.Skipf("anybody may listen on port 443 here: net.ipv4.ip_unprivileged_port_start is %d", n)
		}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrPermission) {
		t.Skipf("cannot act as another user: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "denied true") {
		t.Errorf("Browser on a port that needs a right: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "may not listen on port 443") || !strings.Contains(string(out), "callback "+login.RedirectURL) ||
		!strings.Contains(string(out), "err <nil>") {
		t.Errorf("Auto on a port that needs a right does not say so and take a paste:\n%s", out)
	}
}
