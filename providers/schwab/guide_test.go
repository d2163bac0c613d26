package schwab

import (
	"testing"

	"github.com/brokerauth/brokerauth/internal/guide"
)

func TestTroubleshooting(t *testing.T) {
	guide.Check(t, "../../docs/troubleshooting.md", "schwab", guide.Rules(rules()))
}
