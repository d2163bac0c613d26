package porting_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A developer looks up a name of the library that he used. None may be missing.
func TestGuideNames(t *testing.T) {
	guide, err := os.ReadFile("../docs/porting-td-to-schwab.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`
		easy_client client_from_login_flow client_from_manual_flow client_from_token_file client_from_access_functions
		token_read_func token_write_func api_key redirect_uri token_path webdriver_func redirect_wait_time_seconds max_waits
		asyncio ensure_updated_refresh_token RedirectTimeoutError tda-generate-token.py enable_bug_report_logging
		TDClient account_number credentials_path auth_flow _multiprocessing_safe login() logout() oauth() grab_url
		exchange_code_for_token return_refresh_token=False grab_access_token grab_refresh_token validate_token silent_sso
		FlaskTDAuth authorization_url grab_access_token_and_refresh_token save_token save_state td.oauth.run(flask_client close_after shutdown_server
		/login /login/callback /login/refresh /shutdown SECRET_KEY StatePath ~/.td_python_api
		NotNulError TknExpError ForbidError NotFndError ExdLmtError ServerError GeneralError
		configure default_api consumer_key callback_url store_tokens retry_count pause refresh_auth auth_check TDAuthManager
		auth_via_browser refresh_access_token TDAuthServer DiskCache MemCache gen_ssl access_valid refresh_valid auth_valid
		TD_CONSUMER_KEY TD_CALLBACK_URL TD_CONFIG_DIR TD_STORE_TOKENS TD_LOG_LEVEL ~/.tdm get_refresh_token.py
		AuthorizationError ConfigurationError CacheError SSLError TDQueryError
		max_token_age callback_timeout interactive requested_browser is_logged_in token_age`) {
		if !strings.Contains(string(guide), name) {
			t.Errorf("the guide does not mention %s", name)
		}
	}
}

// The guide's program is one.
func TestGuideProgram(t *testing.T) {
	guide, err := os.ReadFile("../docs/porting-td-to-schwab.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, found := strings.Cut(string(guide), "```go\npackage main\n")
	program, _, end := strings.Cut(program, "```\n")
	if !found || !end {
		t.Fatal("the guide has no program")
	}
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte("package main\n"+program), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "vet", file).CombinedOutput(); err != nil {
		t.Errorf("go vet: %v\n%s", err, out)
	}
}

// What older libraries promise has its place in the page for those who come from them.
func TestComingFromNames(t *testing.T) {
	page, err := os.ReadFile("../docs/coming-from.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`
		easy_client max_token_age client_from_login_flow callback_timeout interactive requested_browser client_from_manual_flow
		client_from_token_file client_from_access_functions schwab-generate-token.py token_age get_auth_context client_from_received_url
		4001 Session assertion_rejected Denied Approved 401 ErrCorrupt --start --finish Keeper %40&session= tokens.json
		update_tokens TD_CONSUMER_KEY TD_CALLBACK_URL TD_CONFIG_DIR TD_STORE_TOKENS=False DiskCache MemCache SQLCache sqlstore
		http://localhost:8080 close_after FlaskTDAuth flows.Web _multiprocessing_safe grab_access_token grab_refresh_token grab_url
		exchange_code_for_token return_refresh_token=False logout account_number @AMER.OAUTHAP ~/.td_python_api TknExpError ForbidError
		TASTY_CLIENT_SECRET TASTY_REFRESH_TOKEN refresh() is_logged_in() session.client.get("/path") base_url Sandbox .gitignore
		setup-schwab.md setup-tastytrade.md troubleshooting.md how-oauth-works.md doctor`) {
		if !strings.Contains(string(page), name) {
			t.Errorf("the page does not mention %s", name)
		}
	}
}
