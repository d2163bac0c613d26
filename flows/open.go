package flows

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// openBrowser opens url the system's way.
func openBrowser(ctx context.Context, url string) error {
	argv, err := browserCommand(os.Getenv("BROWSER"), url)
	if err != nil {
		return err
	}
	name := filepath.Base(argv[0])
	switch strings.TrimSuffix(strings.ToLower(name), ".exe") {
	case "lynx", "w3m", "links", "links2", "elinks", "www-browser":
		return fmt.Errorf("%s needs the terminal", name)
	}
	if runtime.GOOS == "windows" {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env, cmd.SysProcAttr = browserEnv(os.Environ()), detach()
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return cmd.Process.Release()
	}
	// The program may last as long as the browser, when nobody is left here to wait for it. So a shell, which reads none
	// of the arguments, starts it, looks for a second whether it fails, and leaves it to the system.
	script := `"$@" & sleep 1; kill -0 $! 2>/dev/null || wait $!`
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", script, "sh"}, argv...)...)
	cmd.Env, cmd.SysProcAttr = browserEnv(os.Environ()), detach()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// browserCommand returns the program that opens url, and its arguments. browsers is a list of programs as in $BROWSER.
func browserCommand(browsers, url string) ([]string, error) {
	for _, browser := range filepath.SplitList(browsers) {
		argv := strings.Fields(browser)
		if path, err := exec.LookPath(browser); err == nil {
			return []string{path, url}, nil // a path with spaces
		}
		if len(argv) == 0 {
			continue
		}
		path, err := exec.LookPath(argv[0])
		if err != nil {
			continue
		}
		given := false
		for i, arg := range argv {
			given = given || strings.Contains(arg, "%s")
			argv[i] = strings.ReplaceAll(arg, "%s", url)
		}
		if !given {
			argv = append(argv, url)
		}
		argv[0] = path
		return argv, nil
	}
	if browsers != "" {
		return nil, fmt.Errorf("$BROWSER is %q, and there is no such program", browsers)
	}
	var argv []string
	switch runtime.GOOS {
	case "windows":
		argv = []string{"rundll32", "url.dll,FileProtocolHandler", url}
	case "darwin":
		argv = []string{"open", url}
	default:
		if onWSL() {
			// Windows has the browser, and WSL its programs.
			for _, argv := range [][]string{{"wslview", url}, {"rundll32.exe", "url.dll,FileProtocolHandler", url}} {
				if path, err := exec.LookPath(argv[0]); err == nil {
					argv[0] = path
					return argv, nil
				}
			}
		}
		if !hasDisplay() {
			return nil, errors.New("there is no display") // xdg-open would try browsers that run in the terminal
		}
		argv = []string{"xdg-open", url}
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, err
	}
	argv[0] = path
	return argv, nil
}

func hasDisplay() bool { return os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != "" }

// onWSL reports whether this is Linux inside of Windows.
func onWSL() bool { return runtime.GOOS == "linux" && os.Getenv("WSL_DISTRO_NAME") != "" }

// unseen says why the person would not see a browser that is opened here; empty: there is no reason.
func unseen() string {
	_, docker := os.Stat("/.dockerenv")
	_, podman := os.Stat("/run/.containerenv")
	switch {
	case os.Getenv("BROWSER") != "":
		return "" // the person, or a remote editor, knows better
	case os.Getenv("SSH_CONNECTION") != "":
		return "this is a login over SSH"
	case os.Getenv("JUPYTERHUB_SERVICE_PREFIX") != "" || os.Getenv("COLAB_RELEASE_TAG") != "":
		return "this is a notebook on another computer"
	case docker == nil || podman == nil || os.Getenv("container") != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "":
		return "this is a container"
	case onWSL():
		return ""
	case runtime.GOOS != "windows" && runtime.GOOS != "darwin" && !hasDisplay():
		return "there is no display"
	}
	return ""
}

// browserEnv keeps what a browser needs to find its display, its user's folders and its language. The rest may hold
// an app's secret, and the browser's children and crash reports would have it too.
func browserEnv(env []string) []string {
	names := []string{
		"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "DISPLAY", "WAYLAND_DISPLAY",
		"XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "DESKTOP_SESSION", "BROWSER", "LD_LIBRARY_PATH",
		// Windows
		"SYSTEMROOT", "WINDIR", "SYSTEMDRIVE", "COMSPEC", "PATHEXT", "TEMP", "TMP", "USERNAME", "USERPROFILE", "USERDOMAIN",
		"HOMEDRIVE", "HOMEPATH", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "ALLUSERSPROFILE", "PUBLIC", "OS",
	}
	prefixes := []string{
		"LC_", "XDG_", "GNOME_", "KDE_", "QT_", "GTK_", "GDK_", "MOZ_", "WSL", "PROGRAMFILES", "COMMONPROGRAM", "PROCESSOR_",
	}
	return slices.DeleteFunc(slices.Clone(env), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		if runtime.GOOS == "windows" {
			name = strings.ToUpper(name)
		}
		return !slices.Contains(names, name) &&
			!slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	})
}
